"""The samples as a user has them: copied, changed, compiled, served by processes of their own on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from blockc.cli import main
from blockc.samples import root
from blockc.zoo.pack import read_pack_spans

MODEL_OF = {
    "harbour/crew": "pirate",
    "harbour/storm": "loud",
    "library/desk": "archivist",
    "library/reading": "poet",
    "berlin/chat": "german",
    "chamber/counsel": "lawyer",
    "public/ask": "base",
}
TENANTS = sorted({app.partition("/")[0] for app in MODEL_OF})
OPERATOR = "sk-the-operator"
KEYS = {"*": [OPERATOR], **{tenant: [f"sk-key-of-{tenant}"] for tenant in TENANTS}}

# One base and one adapter: what wrong files are tried on.
SMALL = """
base sample : hf("./base") { dtype = bf16  max_model_len = 512 }
finetune german : sample { weights = "./german" }
cluster box { node local { device d0 : cpu { memory = 1GiB  reserve = 128MiB } } }
tenant berlin { app chat { model = german } }
"""


def copied(folder: Path, *models: str) -> Path:
    """Some of the samples' folders in ``folder``, with the fleet's spec and a small one."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        shutil.copytree(root() / model, folder / model)
    shutil.copy(root() / "fleet.blk", folder)
    (folder / "small.blk").write_text(SMALL, encoding="utf-8")
    return folder


def compiled_with_all_and_few(folder: Path, spec: str, *, residency: str) -> None:
    """``all.json``: memory for everybody; ``few.json``: as much as ``residency`` gives. Both with one zoo."""
    for name, policy in (("all", ""), ("few", f"policy {{ residency {{ {residency} }} }}\n")):
        (folder / f"{name}.blk").write_text(spec + policy)
        assert main(["compile", str(folder / f"{name}.blk"), "-o", str(folder / f"{name}.json")]) == 0


class Command:
    """A running ``blockc serve`` on a free port, with the fleet's keys unless told otherwise."""

    def __init__(self, plan: Path, folder: Path, *options: str, keys: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if keys:
            (folder / "keys.json").write_text(json.dumps(KEYS))
            options = ("--keys", str(folder / "keys.json"), *options)
        self._log = folder / "stderr.txt"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "blockc", "serve", str(plan), "--port", "0", *options],
                stdout=subprocess.PIPE, stderr=log, text=True, env={"OMP_NUM_THREADS": "1", **os.environ},
            )  # fmt: skip
        self.url = ""

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def ready(self) -> Command:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # ends with the process, if it does
        assert line.startswith("serving on http://127.0.0.1:"), self.log
        self.url = line.split()[-1]
        return self

    def children(self) -> list[int]:
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]

    def kill_engine(self) -> None:
        self.signal_engine(signal.SIGKILL)

    def signal_engine(self, number: signal.Signals) -> None:
        (engine,) = self.children()
        os.kill(engine, number)

    def wait(self, within_s: float = 60) -> int:
        return self.process.wait(within_s)

    def http(self, key: str | None = OPERATOR) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, timeout=60, headers=headers)


@contextmanager
def serving(plan: Path, folder: Path, *options: str, keys: bool = True) -> Iterator[Command]:
    """``blockc serve``, ready or not; ended when the block is left."""
    command = Command(plan, folder, *options, keys=keys)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.terminate()
        try:
            command.wait(40)
        except subprocess.TimeoutExpired:
            command.process.kill()
            command.wait()
        assert command.process.stdout is not None
        command.process.stdout.close()


@contextmanager
def client_of(plan: Path, folder: Path, *options: str) -> Iterator[httpx.Client]:
    """A client of a server without keys, in which nothing goes wrong unseen."""
    with serving(plan, folder, *options, keys=False) as command:
        command.ready()
        with command.http() as client:
            yield client
        assert "Traceback" not in command.log


def chat(app: str, question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": app, "messages": messages, "max_tokens": 96, "temperature": 0, **fields}


def answer(http: httpx.Client, app: str, question: str, **fields: Any) -> str:
    reply = http.post("/v1/chat/completions", json=chat(app, question, **fields))
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"])


def events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The chunks of a stream; a declared error is one, too."""
    for line in lines:
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def delta(chunk: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


def metric(http: httpx.Client, name: str) -> float:
    """The sum of a metric over its labels."""
    text = http.get("/metrics").text
    found = re.findall(rf"^blockc:{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def flipped(path: Path, *, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def damaged(zoo: Path, tensors: Container[str]) -> None:
    """A bit of each of these tensors is another one in its pack."""
    for path in (zoo / "packs").iterdir():
        for place in read_pack_spans(path):
            if place.name in tensors:
                flipped(path, at=(place.start + place.end) // 2)
