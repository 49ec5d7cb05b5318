"""How exact one step is whose rows have a fine-tune of every kind, each row compared with its model run alone.

    python -m benchmarks.one_batch [--out results.json]

The bases are tiny, seeded and random, in float32 on CPU; the reference is transformers with PEFT, and for bottlenecks
what AdapterHub's library computes. All rows are in every step of the engine, prefill and decode.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tests.support.one_batch import ARCHITECTURES, BatchReport, fleet, measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=12, help="that each row answers with")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for architecture in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            served = fleet(architecture, Path(folder))
            report = measure(served, Path(folder), output_tokens=options.tokens)
        print(table(architecture, report), flush=True)
        found[architecture] = asdict(report)
    if options.out is not None:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        command = f"python -m benchmarks.one_batch --tokens {options.tokens}"
        about = {"commit": commit, "command": command, "threads": torch.get_num_threads()}
        options.out.write_text(json.dumps(about | found, indent=1) + "\n")


def table(architecture: str, report: BatchReport) -> str:
    """The rows of one batch as text."""
    lines = [f"{architecture}: {max(report.rows_by_step)} rows in one step", ""]
    lines.append(f"  {'row':24} {'prompt':>6} {'max |logit - alone|':>20} {'max |alone - base|':>19}  tokens")
    for row in report.rows:
        equal = "equal" if row.tokens_equal else "DIFFER"
        lines.append(f"  {row.model:24} {row.prompt_tokens:6} {row.max_difference:20.1e} {row.change:19.2f}  {equal}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
