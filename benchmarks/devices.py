"""What a server makes of several devices: tokens a second on one, two and four, of an app that runs on all of them.

    python -m benchmarks.devices [--devices 1 2 4] [--streams 32] [--tokens 128] [--step-ms 16] [--rounds 3]
                                 [--executor null] [--out FILE]

Compiles the sample base for so many CPU devices with as many replicas, serves it, and opens ``--streams`` streams for
each device. Prints tokens a second over those of one device (as many times as there are devices would be all), and CPU
time of the server process for each token: that process is one, however many devices there are. With ``null`` a step
takes ``--step-ms`` and computes nothing, as if each device had cores of its own; with ``torch`` the engines share those
of this machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pairs import write
from benchmarks.server_overhead import first_model, measure, serving
from blockc.samples import root

SPEC = """
base sample : hf("{base}") {{ dtype = bf16  max_model_len = 512 }}
cluster box {{ node local {{ for d in 0..{last} {{ device "d${{d}}" : cpu {{ memory = 1GiB  reserve = 256MiB }} }} }} }}
tenant all {{ app ask {{ model = sample  replicas = {count} }} }}
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--streams", type=int, default=32, help="for each device")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--step-ms", type=float, default=16.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--executor", choices=("null", "torch"), default="null")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in options.devices:
            found.append(served(Path(scratch), count, options))
            own, first = found[-1], found[0]
            print(
                f"{count} devices: {own['tokens_per_s']:>8,.0f} tokens/s, "
                f"{own['tokens_per_s'] / first['tokens_per_s']:.2f} times that of {first['devices']}; "
                f"{own['server_us_a_token']:.0f} us of the server a token",
                flush=True,
            )
    if options.out is not None:
        write(options.out, "benchmarks.devices", {"executor": options.executor, "runs": found}, device="cpu")


def served(folder: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Compiled and served on so many devices."""
    spec, plan = folder / f"{count}.blk", folder / f"{count}.json"
    spec.write_text(SPEC.format(base=root() / "base", last=count - 1, count=count))
    subprocess.run(
        [sys.executable, "-m", "blockc", "compile", str(spec), "-o", str(plan), "--progress", "none"], check=True
    )
    more = ("--executor", options.executor)
    if options.executor == "null":
        more = (*more, "--null-step", str(options.step_ms / 1000))
    with serving(plan, None, *more) as (process, url):
        model = first_model(url)
        measure(process, url, model, streams=count, tokens=options.tokens, rounds=1)  # warm
        best = measure(process, url, model, options.streams * count, options.tokens, options.rounds)
    return {
        "devices": count,
        "streams": best["streams"],
        "tokens_per_s": best["tokens"] / best["wall_s"],
        "server_us_a_token": 1e6 * best["server_cpu_s"] / best["tokens"],
    }


if __name__ == "__main__":
    main()
