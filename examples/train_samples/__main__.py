"""``python -m examples.train_samples``: trains the samples and writes their README."""

import argparse
import time
from pathlib import Path

import torch

from examples.train_samples.plans import TUNES
from examples.train_samples.sheet import write_sheet
from examples.train_samples.train import make_base, make_tune


def main() -> None:
    """Make what is asked for, in an order in which each finds what it is built on."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_samples", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("blockc/samples"), help="where the samples go")
    parser.add_argument("--only", nargs="*", choices=["base", *TUNES, "sheet"], help="make these and nothing else")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="train for this multiple of the usual steps")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or ["base", *TUNES, "sheet"]:
        began = time.monotonic()
        if name == "base":
            make_base(options.out, options.seed, options.scale)
        elif name == "sheet":
            write_sheet(options.out)
        else:
            make_tune(name, options.out, options.seed, options.scale)
        print(f"{name}: made in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
