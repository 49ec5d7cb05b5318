"""More fine-tunes than there is memory for: served in turn, with the same answers; a damaged one stops only itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from blockc.cli import main
from blockc.plan import load_plan, read_manifest
from blockc.samples import root
from blockc.samples.manners import PROMPTS, manner
from blockc.zoo import Zoo
from tests.e2e.fleet import Command, answer, chat, compiled_with_all_and_few, damaged, metric, serving

COUNT = 24
LIMIT = "3MiB"

SPEC = """
base sample : hf("./base") {{ dtype = bf16  max_model_len = 512 }}
{fine_tunes}
cluster box {{ node local {{ device d0 : cpu {{ memory = 1GiB  reserve = 128MiB }} }} }}
tenant library {{
{apps}
}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archivist many times, each a little weaker than the last, so that no two are the same."""
    folder = tmp_path_factory.mktemp("many")
    shutil.copytree(root() / "base", folder / "base")
    for number in range(COUNT):
        file = shutil.copytree(root() / "archivist", folder / f"a{number}") / "adapter_model.safetensors"
        tensors = load_file(file)
        save_file({name: own * (1 - number / 512) if "lora_B" in name else own for name, own in tensors.items()}, file)
    fine_tunes = "\n".join(f'finetune a{n} : sample {{ weights = "./a{n}" }}' for n in range(COUNT))
    apps = "\n".join(f"  app a{n} {{ model = a{n} }}" for n in range(COUNT))
    compiled_with_all_and_few(folder, SPEC.format(fine_tunes=fine_tunes, apps=apps), residency=f"fine_tunes = {LIMIT}")
    return folder


@pytest.fixture(scope="module")
def few(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with serving(folder / "few.json", tmp_path_factory.mktemp("few"), keys=False) as command:
        yield command.ready()
        assert "Traceback" not in command.log


def asked(http: httpx.Client) -> list[str]:
    """Every app twice, sixteen at a time."""
    questions = [(f"library/a{(7 * n) % COUNT}", PROMPTS[n % len(PROMPTS)]) for n in range(2 * COUNT)]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda item: answer(http, *item), questions))


def test_answers_are_those_of_memory_for_all(folder: Path, few: Command, tmp_path: Path):
    plan = load_plan(folder / "few.json")
    (slots,) = plan.instances[0].side_slots.values()
    assert 2 <= slots < COUNT // 2
    assert plan.memory[0].sides_bytes <= 3 << 20
    with few.http() as http:
        found = asked(http)
        assert metric(http, "side_loads_total") > COUNT
    with serving(folder / "all.json", tmp_path, keys=False) as everyone, everyone.ready().http() as http:
        assert asked(http) == found
    assert {manner(text) for text in found} == {"archivist"}


def test_verify_holds_them_against_peft(folder: Path, capfd: pytest.CaptureFixture[str]):
    assert main(["verify", str(folder / "few.json"), "--prompts", "2", "--tokens", "4"]) == 0
    assert capfd.readouterr().out.count("ok   library/") == COUNT


def test_a_damaged_one_stops_only_itself(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    plan = load_plan(copy / "few.json")
    zoo = Zoo(copy / "zoo")
    tensors = {
        app.app: {term.tensors["b"].digest for side in manifest.sides for term in side.terms}
        for app in plan.apps
        for digest in (plan.chains[app.chain].sides or "",)
        for manifest in (read_manifest(digest, zoo.blob(digest)),)
    }
    others = set[str]().union(*(own for app, own in tensors.items() if app != "a5"))
    wanted = tensors["a5"] - others
    assert wanted
    damaged(copy / "zoo", wanted)
    with serving(copy / "few.json", tmp_path, keys=False) as command, command.ready().http() as http:
        replies = {app.app: http.post("/v1/chat/completions", json=chat(app.address, "Hello!")) for app in plan.apps}
        assert {app for app, reply in replies.items() if reply.status_code != 200} == {"a5"}
        message = replies["a5"].json()["error"]["message"]
        assert "its fine-tune could not be loaded" in message
        assert str(tmp_path) not in message
        assert "library/a5 cannot be served: BC903" in command.log
        assert manner(answer(http, "library/a6", PROMPTS[0])) == "archivist"
