"""Bytes that a plan predicts beside those that its engine takes, part by part, in the hungriest steps.

    python -m benchmarks.memory                              # 246 M parameters, 16 LoRAs, one full fine-tune, bf16
    python -m benchmarks.memory --shape small --dtype fp32 --json out.json

The engine is the process that ``blockc serve`` starts. Measured from outside: what it holds at the peak of a step, less
what the same process holds before it loads anything. Requests fill every page of the KV cache, then come again with
their first page cached, in steps as large as the plan allows, and end one after another.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine_process import EngineProcess, ProcessMemory, forget_peak, runtime_memory
from benchmarks.fleet import SHAPES, make_fleet
from benchmarks.rates import origin
from blockc.ir.layout import format_bytes
from blockc.plan import ExecutionPlan, load_plan
from blockc_runtime.memory import MemoryUse
from blockc_runtime.request import Request, Sampling

PARTS = ("weights", "sides", "kv", "workspace")
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An engine from outside and by its own account. ``runtime``: before anything was loaded."""

    runtime: ProcessMemory
    served: ProcessMemory
    use: MemoryUse
    most_tokens: int

    @property
    def rise_bytes(self) -> int:
        """What the process came to hold while it loaded and served."""
        return self.served.most_held_bytes - self.runtime.held_bytes


def measure(plan_file: Path, zoo: Path) -> Measured:
    """Load a plan and serve the hungriest steps. Raises RuntimeError if a request fails."""
    plan = load_plan(plan_file)
    runtime = runtime_memory(plan_file, zoo)
    with EngineProcess(plan_file, zoo) as engine:
        forget_peak(engine.process.pid)
        most_tokens = 0
        for turn in range(2):
            tokens, ends = engine.run(requests(plan, turn))
            most_tokens = max(most_tokens, tokens)
            if any(end.reason != "length" for end in ends):
                raise RuntimeError(f"a request ended otherwise than by its length: {ends}")
        use = engine.stats().memory
        assert use is not None, "the benchmark needs a system with /proc"
        return Measured(runtime=runtime, served=engine.memory, use=use, most_tokens=most_tokens)


def requests(plan: ExecutionPlan, turn: int) -> Iterator[Request]:
    """As many as a step has rows, of full length together; those of one app begin alike in every turn."""
    rows, page = plan.batching.max_rows, plan.kv_groups[0].page_tokens
    for index in range(rows):
        app_index = index % len(plan.apps)
        app = plan.apps[app_index]
        chain = plan.chains[app.chain]
        outputs = 2 + index % (2 * page)
        words = [random.Random(index), random.Random(f"{turn} {index}")]
        lengths = [page, chain.max_model_len - outputs - page]
        yield Request(
            id=f"{turn} {index}",
            app=app_index,
            chain=app.chain,
            isolation_group=app.isolation_group,
            prompt=tuple(
                word.randrange(3, chain.vocab_size)
                for word, length in zip(words, lengths, strict=True)
                for _ in range(length)
            ),
            emitted=0,
            max_tokens=outputs,
            stop_token_ids=(),
            sampling=Sampling(
                temperature=1.0, top_p=0.9 if index % 2 else 1.0, seed=index, logprobs=None if index % 3 else 5
            ),
        )


def report(plan: ExecutionPlan, measured: Measured) -> dict[str, Any]:
    """Print the table and return its figures."""
    entry = plan.memory[0]
    rows = {part: (getattr(entry, f"{part}_bytes"), getattr(measured.use, f"{part}_bytes")) for part in PARTS}
    predicted = entry.used_bytes - entry.reserve_bytes
    rows["together, from outside"] = predicted, measured.rise_bytes
    print(f"{'':24} {'predicted':>10} {'measured':>10}  predicted / measured")
    for name, (planned, found) in rows.items():
        print(f"{name:24} {format_bytes(planned):>10} {format_bytes(found):>10}  {planned / found:.3f}")
    print(f"{'peak while loading':24} {'':10} {format_bytes(measured.use.loading_peak_bytes):>10}")
    print(f"{'interpreter, libraries':24} {'':10} {format_bytes(measured.use.runtime_bytes):>10}", flush=True)
    return {
        **{
            name.split(",")[0]: {"predicted_mib": round(planned / MIB, 1), "measured_mib": round(found / MIB, 1)}
            for name, (planned, found) in rows.items()
        },
        "ratio": round(predicted / measured.rise_bytes, 4),
        "loading_peak_mib": round(measured.use.loading_peak_bytes / MIB, 1),
        "runtime_mib": round(measured.use.runtime_bytes / MIB, 1),
        "private_rise_at_rest_mib": round((measured.served.private_bytes - measured.runtime.private_bytes) / MIB, 1),
        "largest_step_tokens": measured.most_tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mid")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rows", type=int, default=16, help="requests of a step")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--work", type=Path, help="keep the models here between runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = run(options, options.work or Path(scratch))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    shape = SHAPES[options.shape]
    root = work / f"{options.shape}-{options.dtype}"
    spec = make_fleet(
        root,
        shape,
        adapters=options.adapters,
        dtype=options.dtype,
        tuned_layers=shape.layers // 4,
        batching=f"max_batched_tokens = {options.tokens} max_num_seqs = {options.rows}",
    )
    blockc = str(Path(sys.executable).parent / "blockc")
    plan_file = root / "plan.json"
    subprocess.run([blockc, "compile", str(spec), "-o", str(plan_file)], check=True, stdout=subprocess.DEVNULL)
    measured = measure(plan_file, root / "zoo")
    return {
        **{name: getattr(options, name) for name in ("shape", "dtype", "adapters", "rows", "tokens")},
        **origin("benchmarks.memory"),
        **report(load_plan(plan_file), measured),
    }


if __name__ == "__main__":
    main()
