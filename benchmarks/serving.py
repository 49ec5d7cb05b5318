"""Output tokens per second over HTTP, beside transformers + PEFT in the same run, and beside the machine's limit.

    python -m benchmarks.serving                     # 8 requests on 8 LoRAs, 16 on 16, 246 M parameters, bf16
    python -m benchmarks.serving --shape small --json out.json

Every request has its own rank-16 adapter on all linears, 128 prompt tokens and 64 output tokens. PEFT runs the same
batch with ``generate(adapter_names=...)``. The limit counts one read of weights, adapters and KV per decode step and
the prefill's multiplications, at the rates measured in this run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.fleet import SHAPES, Shape, make_fleet
from benchmarks.rates import Rates, measure_rates, origin

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mid")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep the models here between runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = run(options.work or Path(scratch), options.shape, options.batches, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def run(work: Path, name: str, batches: list[int], repeats: int) -> dict[str, Any]:
    shape = SHAPES[name]
    root = work / name
    spec = make_fleet(root, shape, adapters=max(batches))
    blockc = str(Path(sys.executable).parent / "blockc")
    subprocess.run([blockc, "compile", str(spec), "-o", str(root / "plan.json")], check=True)
    rates = measure_rates()
    print(
        f"memory reads at {rates.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"bf16 GEMM at {rates.gemm_flops_per_s / 1e9:.0f} GFLOP/s",
        flush=True,
    )
    rows = []
    with serving(blockc, root / "plan.json") as url:
        ours = {count: asyncio.run(measure(url, shape, count, repeats)) for count in batches}
    theirs = measure_peft(root, shape, batches, repeats)
    for count in batches:
        limit = limit_tokens_per_s(shape, count, rates)
        row = {
            "requests": count,
            "blockc_tok_s": round(ours[count], 1),
            "peft_tok_s": round(theirs[count], 1),
            "ratio": round(ours[count] / theirs[count], 2),
            "limit_tok_s": round(limit, 1),
            "of_limit": round(ours[count] / limit, 3),
        }
        rows.append(row)
        print(
            f"{count:>3} requests on {count} LoRAs: blockc {row['blockc_tok_s']} tok/s, "
            f"PEFT {row['peft_tok_s']} tok/s, ratio {row['ratio']}, {100 * ours[count] / limit:.0f} % of the limit",
            flush=True,
        )
    return {
        "shape": name,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        **origin(),
        "read_gb_s": round(rates.read_bytes_per_s / 1e9, 1),
        "gemm_gflop_s": round(rates.gemm_flops_per_s / 1e9),
        "rows": rows,
    }


@contextmanager
def serving(blockc: str, plan: Path) -> Iterator[str]:
    """A server on loopback; yields its URL."""
    process = subprocess.Popen(
        [blockc, "serve", str(plan), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        start = line.find("http://")
        if start < 0:
            raise SystemExit(f"the server did not start: {line!r}")
        yield line[start:].split()[0].rstrip("/")
    finally:
        process.terminate()
        process.wait(timeout=30)


async def measure(url: str, shape: Shape, count: int, repeats: int) -> float:
    """Median output tokens per second of ``count`` concurrent streams, one per adapter."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        rates = []
        for turn in range(repeats + 1):  # the first turn warms up
            start_s = time.perf_counter()
            tokens = await asyncio.gather(*(stream(client, shape, index, turn) for index in range(count)))
            rates.append(sum(tokens) / (time.perf_counter() - start_s))
        return statistics.median(rates[1:])


async def stream(client: httpx.AsyncClient, shape: Shape, index: int, turn: int) -> int:
    """One streamed completion from random token ids; returns how many tokens came."""
    body = {
        "model": f"t/a{index}",
        "prompt": prompt(shape, index, turn),
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    completion_tokens = 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit((await response.aread()).decode())
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage")
                completion_tokens = usage["completion_tokens"] if usage else completion_tokens
    if completion_tokens != OUTPUT_TOKENS:
        raise SystemExit(f"{completion_tokens} tokens instead of {OUTPUT_TOKENS}")
    return completion_tokens


def prompt(shape: Shape, index: int, turn: int) -> list[int]:
    """Random ids, new in every turn: nothing may come from a cache."""
    generator = torch.Generator().manual_seed(1000 * turn + index)
    return torch.randint(3, shape.vocab, (PROMPT_TOKENS,), generator=generator).tolist()


def measure_peft(root: Path, shape: Shape, batches: list[int], repeats: int) -> dict[int, float]:
    """The same batches through ``generate(adapter_names=...)``."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.bfloat16)
    tuned = PeftModel.from_pretrained(model, root / "a0", adapter_name="a0", autocast_adapter_dtype=False)
    for index in range(1, max(batches)):
        tuned.load_adapter(root / f"a{index}", adapter_name=f"a{index}", autocast_adapter_dtype=False)
    tuned.eval()
    found: dict[int, float] = {}
    for count in batches:
        rates = []
        for turn in range(repeats + 1):
            tokens = torch.tensor([prompt(shape, index, turn) for index in range(count)])
            start_s = time.perf_counter()
            with torch.inference_mode():
                output = tuned.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    adapter_names=[f"a{index}" for index in range(count)],
                    max_new_tokens=OUTPUT_TOKENS,
                    min_new_tokens=OUTPUT_TOKENS,
                    do_sample=False,
                )
            rates.append((output.shape[1] - PROMPT_TOKENS) * count / (time.perf_counter() - start_s))
        found[count] = statistics.median(rates[1:])
    return found


def limit_tokens_per_s(shape: Shape, count: int, rates: Rates, rank: int = 16) -> float:
    """Output tokens per second if reads and multiplications ran at the measured rates and nothing else cost time."""
    head = shape.hidden // shape.heads
    kv = shape.kv_heads * head
    ends = [(shape.hidden, shape.hidden)] * 2 + [(shape.hidden, kv)] * 2
    ends += [(shape.hidden, shape.intermediate)] * 3
    layer_parameters = sum(source * target for source, target in ends)
    head_parameters = shape.hidden * shape.vocab
    adapter_parameters = shape.layers * rank * sum(source + target for source, target in ends)
    weights_bytes = 2 * (shape.layers * layer_parameters + head_parameters)
    kv_bytes = 2 * 2 * shape.layers * kv * (PROMPT_TOKENS + OUTPUT_TOKENS / 2)
    step_s = (weights_bytes + count * (2 * adapter_parameters + kv_bytes)) / rates.read_bytes_per_s
    prefill_flops = 2 * count * PROMPT_TOKENS * (shape.layers * layer_parameters + adapter_parameters)
    return count * OUTPUT_TOKENS / (OUTPUT_TOKENS * step_s + prefill_flops / rates.gemm_flops_per_s)


if __name__ == "__main__":
    main()
