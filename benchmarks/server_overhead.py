"""What the server costs: tokens a second through HTTP streaming when the model costs nothing.

    python -m benchmarks.server_overhead PLAN [--zoo DIR] [--streams 16 64] [--tokens 256] [--rounds 4]
                                         [--step-ms 0]

Starts ``blockc serve PLAN --executor null``, opens so many streams of so many tokens each, and prints
tokens per second of wall time, and of CPU time of the server process alone: what one core could do if
engine and client had cores of their own. A null step takes ``--step-ms``: with 0 the engine runs ahead and
tokens share writes; with 10 every token is a write of its own, as with a real model. The client is a
process of its own that only reads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from benchmarks.streams import READ_BYTES, Asked, connect, streamed

PROMPT = list(range(5, 21))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, nargs="?")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=0.0)
    options = parser.parse_args()
    if options.plan is None:
        parser.error("a plan is needed")
    null = ("--executor", "null", "--null-step", str(options.step_ms / 1000))
    with serving(options.plan, options.zoo, *null) as (process, url):
        model = first_model(url)
        measure(process, url, model, streams=4, tokens=32, rounds=1)  # warm
        for streams in options.streams:
            report(measure(process, url, model, streams, options.tokens, options.rounds))


@contextlib.contextmanager
def serving(
    plan: Path, zoo: Path | None, *more: str, log: IO[str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server, with more options; yield its process and URL. ``log``: where its progress goes, if not on."""
    arguments = ["serve", str(plan), "--port", "0", *more]
    if zoo is not None:
        arguments += ["--zoo", str(zoo)]
    process = subprocess.Popen(
        [sys.executable, "-m", "blockc", *arguments], stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        yield process, line.split()[-1]
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()


def measure(
    process: subprocess.Popen[str], url: str, model: str, streams: int, tokens: int, rounds: int
) -> dict[str, float]:
    """Best of several rounds: other work on the machine only ever slows one down."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        before_s = cpu_s(process.pid)
        answered = streamed(url, [post(model, PROMPT, tokens)] * streams, 1)
        result = {
            "streams": streams,
            "tokens": streams * tokens,
            "wall_s": max(own.last_s for own in answered) - min(own.sent_s for own in answered),
            "writes": sum(own.reads for own in answered),
            "server_cpu_s": cpu_s(process.pid) - before_s,
        }
        if not best or result["wall_s"] < best["wall_s"]:
            best = result
    return best


def report(result: dict[str, float]) -> None:
    """Print one line."""
    tokens = result["tokens"]
    print(
        f"{result['streams']:>3} streams: {tokens / result['wall_s']:>8,.0f} tokens/s wall, "
        f"{tokens / result['server_cpu_s']:>8,.0f} tokens per CPU second of the server "
        f"({1e6 * result['server_cpu_s'] / tokens:.0f} us a token), "
        f"{tokens / result['writes']:.1f} tokens a write",
        flush=True,
    )


def cpu_s(pid: int) -> float:
    """CPU time of the threads of a process, without its children. By nanoseconds where the system says so, or ticks."""
    spent_ns = [_text(path).split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    if any(spent_ns):
        return sum(int(own[0]) for own in spent_ns if own) / 1e9
    return sum(map(int, _stat(_text(Path(f"/proc/{pid}/stat")))[11:13])) / os.sysconf("SC_CLK_TCK")


def cpu_s_with_children(pid: int) -> float:
    """CPU time of a process and of those that it started."""
    stats = {path.parent.name: _text(path) for path in Path("/proc").glob("[0-9]*/stat")}
    children = [int(own) for own, text in stats.items() if text and _stat(text)[1] == str(pid)]
    return cpu_s(pid) + sum(map(cpu_s_with_children, children))


def _text(path: Path) -> str:
    """What is in a file of ``/proc``; nothing if whom it tells of has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _stat(text: str) -> list[str]:
    """The fields behind a process's name: its state, its parent, and so on."""
    return text.rpartition(")")[2].split()


def first_model(url: str) -> str:
    """Return the name of some app of the plan."""
    with connect(url) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(READ_BYTES), b""))
    name: str = json.loads(answer.partition(b"\r\n\r\n")[2])["data"][0]["id"]
    return name


def post(model: str, prompt: list[int], tokens: int) -> Asked:
    """A request for a stream of so many tokens."""
    fields = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    return Asked(path="/v1/completions", fields=fields)


if __name__ == "__main__":
    main()
