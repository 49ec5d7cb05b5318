"""Whether a server that streams slows the steps of its engine.

    python -m benchmarks.http_load [--shape mid] [--rows 8] [--pairs 24] [--steps 160] [--work DIR] [--out FILE]

One engine decodes ``--rows`` requests without a server, another behind ``blockc serve``, which streams each of them
over HTTP; the one that has no turn sleeps. Prints the median step with HTTP over the one without, in pairs of windows
in turns, with its interval of 95 %, and the CPU time of the server and of the client for each token, that of taking the
requests on included.

Both sides are read with one system call a step. Over HTTP that is the stream that began last; the others lie in the
buffers of their sockets, which hold them, until the window is over. So the client takes little of the cores, of which a
remote one would take none.
"""

from __future__ import annotations

import argparse
import itertools
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.engine_process import EngineProcess
from benchmarks.fleet import SHAPES, compiled_fleet
from benchmarks.pairs import paired_values, text_of, write
from benchmarks.server_overhead import cpu_s, first_model, post, serving
from benchmarks.streams import READ_BYTES, connect, is_over
from blockc.plan import load_plan
from blockc_runtime.request import Request, Sampling

PROMPT_TOKENS = 16


@dataclass(slots=True, kw_only=True)
class Windows:
    """Windows of one load: ``rows`` requests that begin together and get ``steps`` tokens each."""

    vocab: int
    rows: int
    steps: int
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def prompts(self) -> list[list[int]]:
        """As many as rows, and never the same again: nothing of them is in a cache."""
        numbers = itertools.islice(self._numbers, self.rows)
        return [[(number * 7919 + 31 * i) % self.vocab for i in range(PROMPT_TOKENS)] for number in numbers]

    def direct(self, engine: EngineProcess) -> float:
        """Seconds of a step without a server."""
        requests = [
            Request(
                id=str(row), app=0, chain=0, isolation_group="t", prompt=tuple(prompt), emitted=0,
                max_tokens=self.steps, stop_token_ids=(), sampling=Sampling(),
            )
            for row, prompt in enumerate(self.prompts())
        ]  # fmt: skip
        return steady_s(engine.arrivals(requests))

    def served(self, url: str, model: str) -> float:
        """Seconds of a step behind a server."""
        streams = [connect(url) for _ in range(self.rows)]
        for stream, prompt in zip(streams, self.prompts(), strict=True):
            stream.sendall(post(model, prompt, self.steps).data())
        arrivals = read_s(streams[-1])
        for stream in streams[:-1]:
            read_s(stream)
        return steady_s(arrivals)


def read_s(stream: socket.socket) -> list[float]:
    """When parts of an answer came, to its end."""
    arrivals, tail = [], b""
    while not is_over(tail):
        data = stream.recv(READ_BYTES)
        arrivals.append(time.perf_counter())
        if not data:
            sys.exit(f"a stream ended early: {tail!r}")
        tail = (tail + data)[-300:]
    stream.close()
    return arrivals


def steady_s(arrivals: list[float]) -> float:
    """The median interval in the middle of a window, where every row decodes."""
    quarter = len(arrivals) // 4
    middle = arrivals[quarter:-quarter]
    return statistics.median(after - before for before, after in itertools.pairwise(middle))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mid")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=160, help="of a window")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.work or Path(scratch)) / options.shape
        path = compiled_fleet(root, SHAPES[options.shape], 1)
        found = run(path, options.rows, options.pairs, options.steps)
    for name, value in found.items():
        print(f"{name}: {text_of(value)}")
    if options.out is not None:
        write(options.out, "benchmarks.http_load", {"shape": options.shape, **found}, device="cpu")


def run(path: Path, rows: int, pairs: int, steps: int) -> dict[str, object]:
    """Windows in turns; each is the median of its steps."""
    windows = Windows(vocab=load_plan(path).chains[0].vocab_size, rows=rows, steps=steps)
    zoo = path.parent / "zoo"
    spent = Spent()
    alone_s: list[float] = []
    with EngineProcess(path, zoo) as engine, serving(path, zoo, "--executor", "torch") as (server, url):
        model = first_model(url)

        def direct() -> float:
            alone_s.append(windows.direct(engine))
            return alone_s[-1]

        def served() -> float:
            return spent.during(server.pid, lambda: windows.served(url, model))

        ratio = paired_values(served, direct, pairs)
    tokens = spent.windows * rows * steps
    return {
        "rows": rows,
        "pairs": pairs,
        "step_ms": 1000 * statistics.median(alone_s),
        "with_http_over_without": ratio,
        "server_us_a_token": 1e6 * spent.server_s / tokens,
        "client_us_a_token": 1e6 * spent.client_s / tokens,
    }


@dataclass(slots=True)
class Spent:
    """CPU time of windows with a server, those of the warm-up too."""

    server_s: float = 0.0
    client_s: float = 0.0
    windows: int = 0

    def during(self, server: int, window: Callable[[], float]) -> float:
        """Run one, and count it."""
        server_s, client_s = cpu_s(server), time.process_time()
        found = window()
        self.server_s += cpu_s(server) - server_s
        self.client_s += time.process_time() - client_s
        self.windows += 1
        return found


if __name__ == "__main__":
    main()
