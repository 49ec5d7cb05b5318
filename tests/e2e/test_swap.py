"""Trained samples swapped, loaded and unloaded while they answer: each in its own manner, whatever is swapped."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from blockc.cli import main
from blockc.plan import load_plan
from blockc.samples import root
from tests.e2e.fleet import OPERATOR, Command, answer, chat, delta, events, serving
from tests.support.processes import eventually, is_alive

QUESTION = "What is the capital of France?"
HEAD = """
base sample : hf("{root}/base") { dtype = bf16  max_model_len = 512 }
cluster box { node local { device d0 : cpu { memory = 1GiB  reserve = 128MiB } } }
"""
FIRST = """
finetune german : sample { weights = "{root}/german" }
finetune poet   : sample { weights = "{root}/poet" }
tenant berlin { quota { requests = 100rps } app chat { model = german } app reading { model = poet } }
tenant public { app ask { model = sample } }
"""
# `berlin/chat` is another model, `berlin/reading` went, `public/more` came.
SECOND = """
finetune archivist : sample { weights = "{root}/archivist" }
finetune poet      : sample { weights = "{root}/poet" }
tenant berlin { app chat { model = archivist } }
tenant public { app ask { model = sample } app more { model = poet } }
"""
KEYS = {"*": [OPERATOR], "berlin": ["sk-key-of-berlin"], "public": ["sk-key-of-public"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plans of one zoo, and fine-tunes that may be loaded."""
    folder = tmp_path_factory.mktemp("swaps")
    for name, text in (("first", FIRST), ("second", SECOND)):
        (folder / f"{name}.blk").write_text((HEAD + text).replace("{root}", str(root())))
        assert main(["compile", str(folder / f"{name}.blk"), "-o", str(folder / f"{name}.json")]) == 0
    for name in ("pirate", "german"):
        shutil.copytree(root() / name, folder / "adapters" / name)
    damaged = folder / "adapters" / "damaged"
    shutil.copytree(root() / "pirate", damaged)
    config = json.loads((damaged / "adapter_config.json").read_text())
    (damaged / "adapter_config.json").write_text(json.dumps({**config, "unheard_of": 3}))
    (folder / "adapters" / "leads-out").symlink_to(root() / "archivist")
    (folder / "keys.json").write_text(json.dumps(KEYS))
    return folder


@pytest.fixture(scope="module")
def swapped(folder: Path) -> Iterator[Command]:
    options = (
        "--keys", str(folder / "keys.json"), "--allow-adapters", str(folder / "adapters"),
        "--spec", str(folder / "first.blk"),
    )  # fmt: skip
    with serving(folder / "first.json", folder / "server", *options, keys=False) as command:
        yield command.ready()
        assert "Traceback" not in command.log


def apply(http: httpx.Client, plan: Path) -> dict[str, object]:
    reply = http.post("/admin/plan", content=plan.read_bytes(), headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


class Load:
    """Questions without end, streamed or not, until it is stopped; whatever is no answer is kept."""

    def __init__(self, command: Command, app: str, manners: set[str], *, threads: int, pause_s: float = 0) -> None:
        self.wrong: list[str] = []
        self.seen: set[str] = set()
        self.answered = 0
        self._stop = threading.Event()
        self._command, self._app, self._manners, self._pause_s = command, app, manners, pause_s
        self._pool = ThreadPoolExecutor(threads)
        self._work = [self._pool.submit(self._run, number) for number in range(threads)]

    def _run(self, number: int) -> None:
        with self._command.http() as http:
            while not self._stop.wait(self._pause_s):
                number += 1
                text = self._streamed(http) if number % 2 else answer(http, self._app, QUESTION)
                self.seen.add(text)
                self.answered += 1  # near enough: threads do not count for each other
                if text not in self._manners:
                    self.wrong.append(text)

    def _streamed(self, http: httpx.Client) -> str:
        with http.stream("POST", "/v1/chat/completions", json=chat(self._app, QUESTION, stream=True)) as reply:
            assert reply.status_code == 200
            chunks = list(events(reply.iter_lines()))
        assert not [chunk for chunk in chunks if "error" in chunk]
        return "".join(map(delta, chunks))

    def stop(self) -> None:
        self._stop.set()
        for work in self._work:
            work.result(60)
        self._pool.shutdown()


@pytest.mark.parametrize(
    ("pairs", "changing_threads", "same_threads"), [(5, 4, 2), pytest.param(50, 24, 8, marks=pytest.mark.slow)]
)
def test_answers_keep_their_manner_while_plans_are_swapped(
    swapped: Command, folder: Path, pairs: int, changing_threads: int, same_threads: int
):
    with swapped.http() as http:
        german, base = answer(http, "berlin/chat", QUESTION), answer(http, "public/ask", QUESTION)
        first = apply(http, folder / "second.json")
        archivist, poet = answer(http, "berlin/chat", QUESTION), answer(http, "public/more", QUESTION)
        assert len({german, base, archivist, poet}) == 4
        assert http.post("/v1/chat/completions", json=chat("berlin/reading", QUESTION)).status_code == 404
        plan = load_plan(folder / "first.json")
        assert [entry.requests_per_minute for entry in plan.tenants] == [6000, None]
        shared = plan.memory[0].weights_bytes
        assert first["bytes"]["kept"] >= shared * 0.9  # type: ignore[index]
        assert first["bytes"]["loaded"] < shared * 0.2  # type: ignore[index]
        # In one tenant `poet` has its lower layers' cache in common with the base: groups are cut there, and new ones.
        assert first["kv_groups"] == {"all": 2, "kept": 0}
        changing = Load(swapped, "berlin/chat", {german, archivist}, threads=changing_threads)
        same = Load(swapped, "public/ask", {base}, threads=same_threads)
        pauses = []
        for _ in range(pairs):
            back = apply(http, folder / "first.json")
            forth = apply(http, folder / "second.json")
            pauses += [back["pause_s"], forth["pause_s"]]
        changing.stop()
        same.stop()
        assert (changing.wrong, same.wrong) == ([], [])
        answers = changing.answered + same.answered
        print(f"{2 * pairs} swaps, {answers} answers, longest pause {max(pauses) * 1000:.1f} ms")
        assert changing.seen == {german, archivist}
        assert back["bytes"]["kept"] >= shared * 0.9  # type: ignore[index]
        assert forth["bytes"]["loaded"] < shared * 0.2  # type: ignore[index]
        apply(http, folder / "first.json")


def test_blockc_apply(
    swapped: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("BLOCKC_KEY", OPERATOR)
    assert main(["apply", str(folder / "second.json"), "--to", swapped.url, "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "berlin/reading  removed" in out
    assert "in force" not in out
    assert main(["apply", str(folder / "second.json"), "--to", swapped.url]) == 0
    assert "kept in memory" in capfd.readouterr().out
    monkeypatch.setenv("BLOCKC_KEY", "sk-key-of-berlin")
    assert main(["apply", str(folder / "first.json"), "--to", swapped.url]) == 1
    assert "operator's key" in capfd.readouterr().err
    monkeypatch.setenv("BLOCKC_KEY", OPERATOR)
    assert main(["apply", str(folder / "first.json"), "--to", swapped.url, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["apps"]["came"] == ["berlin/reading"]


def test_fine_tunes_are_loaded_and_unloaded_under_load(swapped: Command):
    with swapped.http() as http:
        base, german = answer(http, "public/ask", QUESTION), answer(http, "berlin/chat", QUESTION)
        # Without a pause the engine leaves little of two cores to the compilers that are waited for.
        same = Load(swapped, "public/ask", {base}, threads=1, pause_s=0.3)
        other = Load(swapped, "berlin/chat", {german}, threads=1, pause_s=0.3)
        loaded = http.post("/v1/load_lora_adapter", json={"lora_name": "public/crew", "lora_path": "pirate"})
        assert loaded.status_code == 200, loaded.text
        assert loaded.json()["apps"] == {"came": ["public/crew"], "gone": [], "changed": []}
        assert loaded.json()["kv_groups"] == {"all": 1, "kept": 1}
        pirate = answer(http, "public/crew", QUESTION)
        assert pirate not in {base, german}
        again = http.post("/v1/load_lora_adapter", json={"lora_name": "public/crew", "lora_path": "pirate"})
        assert again.status_code == 400
        damaged = http.post("/v1/load_lora_adapter", json={"lora_name": "public/x", "lora_path": "damaged"})
        assert (damaged.status_code, damaged.json()["error"]["code"]) == (400, "BC207")
        assert "unheard_of" in damaged.json()["error"]["diagnostics"][0]["message"]
        unloaded = http.post("/v1/unload_lora_adapter", json={"lora_name": "public/crew"})
        assert unloaded.status_code == 200, unloaded.text
        assert http.post("/v1/chat/completions", json=chat("public/crew", QUESTION)).status_code == 404
        same.stop()
        other.stop()
        assert (same.wrong, other.wrong) == ([], [])
        assert same.answered
        assert other.answered


def test_what_may_not_be_loaded(swapped: Command):
    refused = [
        ("public/x", "../adapters/pirate/../../first.json"), ("public/x", "/etc"), ("public/x", "leads-out"),
        ("public/x", "."), ("public/x", ""), ("public/x", "nothing-there"), ("public/x", "pirate\0"),
        ("x", "pirate"), ("public/x=/etc", "pirate"), ("berlin/chat", "pirate"),
    ]  # fmt: skip
    with swapped.http() as http, swapped.http("sk-key-of-public") as tenant:
        for name, path in refused:
            reply = http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path})
            assert reply.status_code == 400, (name, path, reply.text)
            assert reply.json()["error"]["param"] in ("lora_name", "lora_path")
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "public/x"}).status_code == 404
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "berlin/chat"}).status_code == 400
        for route in ("load", "unload"):
            body = {"lora_name": "public/x", "lora_path": "pirate"}
            assert tenant.post(f"/v1/{route}_lora_adapter", json=body).status_code == 403
            plain = http.post(f"/v1/{route}_lora_adapter", content=json.dumps(body))
            assert plain.status_code == 415
        nobody = http.post("/v1/load_lora_adapter", json={"lora_name": "nobody/x", "lora_path": "pirate"})
        assert (nobody.status_code, nobody.json()["error"]["param"]) == (400, "lora_name")
        body = {"lora_name": "public/x", "lora_path": "pirate", "base_model_name": "nobody"}
        error = http.post("/v1/load_lora_adapter", json=body).json()["error"]
        assert (error["code"], error["param"]) == ("BC101", "base_model_name")


def test_the_end_in_the_middle_of_a_load_leaves_no_compiler(folder: Path, tmp_path: Path):
    options = ("--allow-adapters", str(folder / "adapters"), "--spec", str(folder / "first.blk"), "--executor", "null")
    with serving(folder / "first.json", tmp_path, *options, keys=False) as command, ThreadPoolExecutor(1) as pool:
        command.ready()
        body = {"lora_name": "public/crew", "lora_path": "pirate"}
        loading = pool.submit(httpx.post, f"{command.url}/v1/load_lora_adapter", json=body, timeout=60)
        assert eventually(lambda: len(command.children()) == 2, 20)
        children = command.children()
        command.process.terminate()
        assert command.wait(10) == 0
        assert eventually(lambda: not any(map(is_alive, children)), 10)
        assert loading.result().status_code == 503, loading.result().text + command.log
