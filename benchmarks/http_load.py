"""Whether a server that streams slows the steps of the engine beside it.

    python -m benchmarks.http_load [--shape mid] [--rows 8] [--pairs 24] [--steps 40] [--work DIR] [--out FILE]

An engine process decodes ``--rows`` requests without a server. In every other window a server process beside it (with
an executor that only waits) streams as many answers over HTTP at the pace of the engine's steps, to a client in this
process; the client takes the same cores, which a remote one would not. Prints the median step with HTTP load over the
one without, in pairs of windows in turns, with its interval of 95 %.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.engine_process import EngineProcess
from benchmarks.fleet import SHAPES, compiled_fleet
from benchmarks.pairs import paired_values, text_of, write
from benchmarks.server_overhead import drive, first_model, serving
from blockc.plan import load_plan
from blockc_runtime.request import Request, Sampling
from blockc_runtime.wire.messages import End, Submit, Tokens

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 512


class Decoding:
    """An engine that always decodes the same number of rows."""

    def __init__(self, engine: EngineProcess, vocab: int, rows: int) -> None:
        self._engine, self._vocab = engine, vocab
        self._numbers = itertools.count()
        for _ in range(rows):
            self._submit()

    def _submit(self) -> None:
        number = next(self._numbers)
        prompt = tuple((number * 7919 + 31 * i) % self._vocab for i in range(PROMPT_TOKENS))
        request = Request(
            id=str(number), app=0, chain=0, isolation_group="t", prompt=prompt, emitted=0, max_tokens=OUTPUT_TOKENS,
            stop_token_ids=(), sampling=Sampling(),
        )  # fmt: skip
        self._engine.send(Submit(request=request))

    def steps(self) -> Iterator[float]:
        """Seconds of each step in which everybody decodes."""
        before_s: float | None = None
        while True:
            match self._engine.next():
                case Tokens(load=load):
                    now_s = time.perf_counter()
                    is_decode = load.tokens == load.rows
                    if is_decode and before_s is not None:
                        yield now_s - before_s
                    before_s = now_s if is_decode else None
                case End(events=events):
                    before_s = None
                    for _ in events:
                        self._submit()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mid")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--steps", type=int, default=40, help="of a window")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.work or Path(scratch)) / options.shape
        path = compiled_fleet(root, SHAPES[options.shape], 1)
        found = run(path, options.shape, options.rows, options.pairs, options.steps)
    for name, value in found.items():
        print(f"{name}: {text_of(value)}")
    if options.out is not None:
        write(options.out, "benchmarks.http_load", found, device="cpu")


def run(path: Path, shape: str, rows: int, pairs: int, steps: int) -> dict[str, object]:
    """Windows in turns; each is the median of its steps."""
    vocab = load_plan(path).chains[0].vocab_size
    zoo = path.parent / "zoo"
    with EngineProcess(path, zoo) as engine:
        source = Decoding(engine, vocab, rows).steps()

        def window() -> float:
            return statistics.median(itertools.islice(source, steps))

        pace_s = min(window() for _ in range(4))
        with serving(path, zoo, 1000 * pace_s) as (_, url):
            model = first_model(url)

            def loaded() -> float:
                """Streams run before the first step that counts, and past the last one."""
                is_over = threading.Event()

                def stream() -> None:
                    while not is_over.is_set():
                        drive(url, model, rows, steps)

                client = threading.Thread(target=stream)
                client.start()
                for _ in itertools.islice(source, steps // 4):
                    pass
                took_s = window()
                is_over.set()
                for _ in source:
                    if not client.is_alive():
                        return took_s
                raise AssertionError("an engine decodes for ever")

            ratio = paired_values(loaded, window, pairs)
    return {"shape": shape, "rows": rows, "pairs": pairs, "step_ms": 1000 * pace_s, "with_http_over_without": ratio}


if __name__ == "__main__":
    main()
