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
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROMPT = list(range(5, 21))
READ_BYTES = 1 << 18


def main() -> None:
    """Run the benchmark, or the client if told to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path, nargs="?")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        print(json.dumps(drive(options.drive, options.model, options.streams[0], options.tokens)))
        return
    if options.plan is None:
        parser.error("a plan is needed")
    null = ("--executor", "null", "--null-step", str(options.step_ms / 1000))
    with serving(options.plan, options.zoo, *null) as (process, url):
        model = first_model(url)
        measure(process, url, model, streams=4, tokens=32, rounds=1)  # warm
        for streams in options.streams:
            report(measure(process, url, model, streams, options.tokens, options.rounds))


@contextlib.contextmanager
def serving(plan: Path, zoo: Path | None, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server, with more options; yield its process and URL."""
    program = "import sys; from blockc.cli import main; sys.exit(main())"
    arguments = ["serve", str(plan), "--port", "0", *more]
    if zoo is not None:
        arguments += ["--zoo", str(zoo)]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        yield process, line.split()[-1]
    finally:
        process.terminate()
        process.wait()


def measure(
    process: subprocess.Popen[str], url: str, model: str, streams: int, tokens: int, rounds: int
) -> dict[str, float]:
    """Best of several rounds: other work on the machine only ever slows one down."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        before_s = cpu_s(process.pid)
        command = (sys.executable, "-m", "benchmarks.server_overhead", "--drive", url, "--model", model)
        sizes = ("--streams", str(streams), "--tokens", str(tokens))
        done = subprocess.run([*command, *sizes], capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        result["server_cpu_s"] = cpu_s(process.pid) - before_s
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
    """CPU time of the threads of a process, without its children. By nanoseconds: ``stat`` counts in ticks."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def first_model(url: str) -> str:
    """Return the name of some app of the plan."""
    with connect(url) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(READ_BYTES), b""))
    name: str = json.loads(answer.partition(b"\r\n\r\n")[2])["data"][0]["id"]
    return name


def connect(url: str) -> socket.socket:
    """Open a connection."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def post(model: str, prompt: list[int], tokens: int) -> bytes:
    """A request for a stream of so many tokens."""
    fields = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    body = json.dumps(fields).encode()
    return f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def is_over(tail: bytes | bytearray) -> bool:
    """Whether this is how a stream ends. Exits if it did not end well."""
    if b"[DONE]" not in tail:
        return False
    if b'"finish_reason":"length"' not in tail:
        sys.exit(f"a stream ended early: {bytes(tail[-300:])!r}")
    return True


def drive(url: str, model: str, streams: int, tokens: int) -> dict[str, float]:
    """Open the streams and read them to their ends."""
    asked = post(model, PROMPT, tokens)
    connections = [connect(url) for _ in range(streams)]
    selector = selectors.DefaultSelector()
    began_s = time.perf_counter()
    for connection in connections:
        connection.sendall(asked)
        selector.register(connection, selectors.EVENT_READ, bytearray())
    writes = 0
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(READ_BYTES)
            writes += 1
            tail: bytearray = key.data
            tail += data
            if not data:
                sys.exit(f"a stream ended early: {tail[-300:]!r}")
            if is_over(tail):
                selector.unregister(key.fileobj)
                key.fileobj.close()
            del tail[:-300]
    wall_s = time.perf_counter() - began_s
    return {"streams": streams, "tokens": streams * tokens, "wall_s": wall_s, "writes": writes}


if __name__ == "__main__":
    main()
