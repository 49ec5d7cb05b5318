"""Answers streamed over plain sockets: a client that takes little of the cores.

    python -m benchmarks.streams < JOB

In: a server's URL and requests, which are all sent at once. Out: when the first and the last token of each came, and
how many there were. `streamed` spreads requests over several such processes.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

READ_BYTES = 1 << 18
# What a stream ends with: the last token, usage, [DONE].
_TAIL_BYTES = 1200
_QUIET_S = 60
_TOKEN = re.compile(rb'"(?:text|content)":"[^"]')
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request: where it goes and its body."""

    path: str
    fields: Mapping[str, Any]

    def data(self) -> bytes:
        """As it is sent."""
        body = json.dumps(self.fields).encode()
        return f"POST {self.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Seconds of the monotonic clock, which all processes share. ``tokens``: by the server's count; ``reads``: ours."""

    sent_s: float
    first_s: float
    last_s: float
    tokens: int
    reads: int

    @property
    def ttft_s(self) -> float:
        """From when it was sent to its first token."""
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Of each token behind the first."""
        return (self.last_s - self.first_s) / max(1, self.tokens - 1)


@dataclass(slots=True)
class _Stream:
    sent_s: float
    first_s: float = 0.0
    reads: int = 0
    seen: bytearray = field(default_factory=bytearray)

    def take(self, data: bytes, now_s: float) -> bool:
        """Take in what was read; whether it was the end. Raises RuntimeError if that is not as it should be."""
        self.reads += 1
        self.seen += data
        if not data or (self.reads == 1 and not data.startswith(b"HTTP/1.1 200")):
            raise RuntimeError(f"a stream ended early: {bytes(self.seen[-500:])!r}")
        if not self.first_s and _TOKEN.search(self.seen):
            self.first_s = now_s
        ended = is_over(self.seen)
        del self.seen[:-_TAIL_BYTES]
        return ended

    def answered(self, last_s: float) -> Answered:
        counted = _TOKENS.search(self.seen)
        return Answered(
            sent_s=self.sent_s, first_s=self.first_s or last_s, last_s=last_s,
            tokens=0 if counted is None else int(counted[1]), reads=self.reads,
        )  # fmt: skip


def streamed(url: str, asked: Sequence[Asked], processes: int) -> list[Answered]:
    """Ask all at once, from so many processes. Raises RuntimeError if any stream does not end by its length."""
    parts = [asked[first::processes] for first in range(min(processes, len(asked)))]
    clients = [
        subprocess.Popen(
            (sys.executable, "-m", "benchmarks.streams"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in parts
    ]  # fmt: skip
    try:
        for client, part in zip(clients, parts, strict=True):
            _say(client, json.dumps({"url": url, "asked": [asdict(own) for own in part]}))
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()  # it has connected
        for client in clients:
            _say(client, "go")
        answered: list[Answered] = []
        for client in clients:
            out, err = client.communicate()
            if client.returncode:
                raise RuntimeError((err.strip().splitlines() or ["a client ended early"])[-1])
            answered += [Answered(**own) for own in json.loads(out)]
        return answered
    finally:
        for client in clients:
            client.kill()
            client.wait()


def _read(connections: Sequence[socket.socket], asked: Sequence[Asked]) -> list[Answered]:
    data = [own.data() for own in asked]
    selector = selectors.DefaultSelector()
    for connection, own in zip(connections, data, strict=True):
        sent_s = time.monotonic()
        connection.sendall(own)
        selector.register(connection, selectors.EVENT_READ, _Stream(sent_s))
    answered: list[Answered] = []
    while selector.get_map():
        ready = selector.select(_QUIET_S)
        if not ready:
            raise RuntimeError(f"nothing has come for {_QUIET_S} s")
        for key, _ in ready:
            assert isinstance(key.fileobj, socket.socket)
            stream: _Stream = key.data
            if stream.take(key.fileobj.recv(READ_BYTES), now_s := time.monotonic()):
                selector.unregister(key.fileobj)
                key.fileobj.close()
                answered.append(stream.answered(now_s))
    return answered


def connect(url: str) -> socket.socket:
    """Open a connection."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def is_over(tail: bytes | bytearray) -> bool:
    """Whether this is how a stream ends. Raises RuntimeError if it did not end well."""
    if b"[DONE]" not in tail:
        return False
    if b'"finish_reason":"length"' not in tail:
        raise RuntimeError(f"a stream ended early: {bytes(tail[-500:])!r}")
    return True


def _say(client: subprocess.Popen[str], line: str) -> None:
    assert client.stdin is not None
    client.stdin.write(line + "\n")
    client.stdin.flush()


def main() -> None:
    """Read a job, say when all are connected, ask when told to, and say what came."""
    job = json.loads(sys.stdin.readline())
    asked = [Asked(**own) for own in job["asked"]]
    connections = [connect(job["url"]) for _ in asked]
    print("connected", flush=True)
    sys.stdin.readline()
    print(json.dumps([asdict(own) for own in _read(connections, asked)]))


if __name__ == "__main__":
    main()
