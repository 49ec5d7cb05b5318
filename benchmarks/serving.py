"""Output tokens per second over HTTP, beside transformers + PEFT in the same run, and beside the machine's limit.

    python -m benchmarks                             # 246 M parameters, bf16: base rows, 8 on 8 LoRAs, 16 on 16
    python -m benchmarks --shape small --json out.json
    python -m benchmarks --shape small --registered 1000    # 16 requests on adapters drawn by a power law

Every request has 128 prompt tokens and 64 output tokens; on LoRAs each has a rank-16 adapter of its own on all linears.
transformers and PEFT run the same batch with ``generate``, in float32 where torch multiplies that faster than bfloat16.
The limit counts one read of weights, adapters and KV per decode step and the prefill's multiplications, at the rates
measured in this run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.fleet import SHAPES, Shape, compiled_fleet
from benchmarks.rates import Rates, measure_rates, origin
from benchmarks.server_overhead import cpu_s_with_children
from benchmarks.server_overhead import serving as started

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``requests`` at once, each on an adapter of its own or all on the base."""

    requests: int
    loras: bool

    @property
    def title(self) -> str:
        """For the table."""
        return f"{self.requests} on {self.requests} LoRAs" if self.loras else f"{self.requests} on the base"

    def models(self, turn: int) -> list[str]:
        """The model of each request."""
        return [f"t/a{index}" if self.loras else "t/base" for index in range(self.requests)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """``requests`` at once, each on one of ``known`` adapters drawn by a power law."""

    requests: int
    known: int

    def models(self, turn: int) -> list[str]:
        """The model of each request; other ones in each turn."""
        shares = [1 / (index + 1) for index in range(self.known)]
        return [f"t/a{index}" for index in random.Random(turn).choices(range(self.known), shares, k=self.requests)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A process that requests go to. ``fields``: what a request on a model has besides what all have."""

    process: int
    url: str
    fields: Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of each turn output tokens per second and CPU time for one; times to first token of all requests of all turns.

    CPU time is the server's and its engine's: where others use the machine too, it says more than a clock.
    """

    rates: tuple[float, ...]
    cpu_s: tuple[float, ...]
    ttft_s: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """The median."""
        return statistics.median(self.rates)

    def over(self, other: Measured) -> float:
        """How many times as many tokens per second as another server in the same turn; the median."""
        return statistics.median(own / its for own, its in zip(self.rates, other.rates, strict=True))

    def ttft(self, share: float) -> float:
        """A quantile in seconds."""
        return sorted(self.ttft_s)[min(len(self.ttft_s) - 1, int(share * len(self.ttft_s)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mid")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16], help="requests, each on a LoRA of its own")
    parser.add_argument("--base-batches", type=int, nargs="*", default=[1, 8, 16], help="requests on the base")
    parser.add_argument("--registered", type=int, help="compare 16 registered adapters with so many, and end")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep the models here between runs")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        if options.registered:
            report = run_registered(work, options.shape, options.registered, options.repeats)
        else:
            cases = [Case(requests=count, loras=False) for count in options.base_batches]
            cases += [Case(requests=count, loras=True) for count in options.batches]
            report = run(work, options.shape, cases, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def run(work: Path, name: str, cases: list[Case], repeats: int) -> dict[str, Any]:
    shape = SHAPES[name]
    root = work / name
    plan = compiled_fleet(root, shape, max(case.requests for case in cases))
    rates = measure_rates()
    print(
        f"memory reads at {rates.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"{rates.dtype} GEMM at {rates.gemm_flops_per_s / 1e9:.0f} GFLOP/s",
        flush=True,
    )
    with serving(plan) as server:
        ours = {case: asyncio.run(measure({"blockc": server}, shape, case, repeats))["blockc"] for case in cases}
    theirs = measure_peft(root, shape, cases, repeats, rates.dtype)
    rows = []
    for case in cases:
        got, limit = ours[case], limit_tokens_per_s(shape, case, rates)
        row = {
            "requests": case.requests,
            "loras": case.loras,
            "blockc_tok_s": round(got.tokens_per_s, 1),
            "peft_tok_s": round(theirs[case], 1),
            "ratio": round(got.tokens_per_s / theirs[case], 2),
            "limit_tok_s": round(limit, 1),
            "of_limit": round(got.tokens_per_s / limit, 3),
            "ttft_p50_s": round(got.ttft(0.5), 3),
            "ttft_p95_s": round(got.ttft(0.95), 3),
        }
        rows.append(row)
        print(
            f"{case.title:>16}: blockc {row['blockc_tok_s']} tok/s, PEFT {row['peft_tok_s']} tok/s, "
            f"ratio {row['ratio']}, {100 * got.tokens_per_s / limit:.0f} % of the limit; "
            f"first token after {got.ttft(0.5):.2f} s (p95 {got.ttft(0.95):.2f})",
            flush=True,
        )
    print("llama.cpp is not measured here: python -m benchmarks.cpu_peers --llama-server FILE")
    return described(name, rates, rows)


def run_registered(work: Path, name: str, known: int, repeats: int) -> dict[str, Any]:
    """16 requests on adapters drawn from 16, and from many."""
    shape = SHAPES[name]
    rows = []
    for count in (16, known):
        plan = compiled_fleet(work / f"{name}-{count}", shape, count)
        with serving(plan) as server:
            got = asyncio.run(measure({"blockc": server}, shape, Drawn(requests=16, known=count), repeats))["blockc"]
        rows.append({"registered": count, "blockc_tok_s": round(got.tokens_per_s, 1)})
        print(f"{count:>5} registered: {got.tokens_per_s:.1f} tok/s", flush=True)
    print(f"ratio {rows[1]['blockc_tok_s'] / rows[0]['blockc_tok_s']:.3f}")
    return described(name, None, rows)


def described(name: str, rates: Rates | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures with where they come from."""
    return {
        "shape": name,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        **origin(),
        **(
            {}
            if rates is None
            else {
                "read_gb_s": round(rates.read_bytes_per_s / 1e9, 1),
                "gemm_gflop_s": round(rates.gemm_flops_per_s / 1e9),
                "peft_dtype": str(rates.dtype).removeprefix("torch."),
            }
        ),
        "rows": rows,
    }


@contextmanager
def serving(plan: Path) -> Iterator[Server]:
    """Ours, on loopback."""
    with Path(os.devnull).open("w") as log, started(plan, None, log=log) as (process, url):
        yield Server(process=process.pid, url=url, fields=lambda model: {"model": model})


async def measure(servers: Mapping[str, Server], shape: Shape, case: Case | Drawn, repeats: int) -> dict[str, Measured]:
    """Concurrent streams, all started at once, at one server after another; the order changes with each turn."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    spent_s: dict[str, list[float]] = {name: [] for name in servers}
    ttft_s: dict[str, list[float]] = {name: [] for name in servers}
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(httpx.AsyncClient(base_url=server.url, timeout=600))
            for name, server in servers.items()
        }
        for turn in range(repeats + 1):  # the first turn warms up
            models = case.models(turn)
            prompts = [prompt(shape, index, turn) for index in range(len(models))]
            for name in list(servers)[:: -1 if turn % 2 else 1]:
                bodies = [
                    servers[name].fields(model) | {"prompt": own} for model, own in zip(models, prompts, strict=True)
                ]
                start_s, start_cpu_s = time.perf_counter(), cpu_s_with_children(servers[name].process)
                first_s = await asyncio.gather(*(stream(clients[name], body) for body in bodies))
                tokens = len(models) * OUTPUT_TOKENS
                if turn:
                    rates[name].append(tokens / (time.perf_counter() - start_s))
                    spent_s[name].append((cpu_s_with_children(servers[name].process) - start_cpu_s) / tokens)
                    ttft_s[name] += first_s
    return {
        name: Measured(rates=tuple(rates[name]), cpu_s=tuple(spent_s[name]), ttft_s=tuple(ttft_s[name]))
        for name in servers
    }


async def stream(client: httpx.AsyncClient, fields: dict[str, Any]) -> float:
    """One streamed completion; seconds until its first token."""
    body = {
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    completion_tokens = 0
    start_s, first_s = time.perf_counter(), 0.0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit((await response.aread()).decode())
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                first_s = first_s or time.perf_counter() - start_s
                usage = json.loads(line[6:]).get("usage")
                completion_tokens = usage["completion_tokens"] if usage else completion_tokens
    if completion_tokens != OUTPUT_TOKENS:
        raise SystemExit(f"{completion_tokens} tokens instead of {OUTPUT_TOKENS}")
    return first_s


def prompt(shape: Shape, index: int, turn: int) -> list[int]:
    """Random ids, new in every turn: nothing may come from a cache."""
    generator = torch.Generator().manual_seed(1000 * turn + index)
    return torch.randint(3, shape.vocab, (PROMPT_TOKENS,), generator=generator).tolist()


def measure_peft(
    root: Path, shape: Shape, cases: Sequence[Case], repeats: int, dtype: torch.dtype
) -> dict[Case, float]:
    """The same batches through ``generate``: with ``adapter_names``, or on the base before any adapter is there."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=dtype).eval()
    found = {case: _generate(model, shape, case, repeats) for case in cases if not case.loras}
    most = max((case.requests for case in cases if case.loras), default=0)
    if not most:
        return found
    tuned = PeftModel.from_pretrained(model, root / "a0", adapter_name="a0", autocast_adapter_dtype=False)
    for index in range(1, most):
        tuned.load_adapter(root / f"a{index}", adapter_name=f"a{index}", autocast_adapter_dtype=False)
    tuned.to(dtype).eval()
    return found | {case: _generate(tuned, shape, case, repeats) for case in cases if case.loras}


def _generate(model: Any, shape: Shape, case: Case, repeats: int) -> float:
    """Median output tokens per second."""
    adapters = {"adapter_names": [f"a{index}" for index in range(case.requests)]} if case.loras else {}
    rates = []
    for turn in range(repeats + 1):
        tokens = torch.tensor([prompt(shape, index, turn) for index in range(case.requests)])
        start_s = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=OUTPUT_TOKENS,
                min_new_tokens=OUTPUT_TOKENS,
                do_sample=False,
                **adapters,
            )
        rates.append((output.shape[1] - PROMPT_TOKENS) * case.requests / (time.perf_counter() - start_s))
    return statistics.median(rates[1:])


def limit_tokens_per_s(shape: Shape, case: Case, rates: Rates, rank: int = 16) -> float:
    """Output tokens per second if reads and multiplications ran at the measured rates and nothing else cost time."""
    head = shape.hidden // shape.heads
    kv = shape.kv_heads * head
    ends = [(shape.hidden, shape.hidden)] * 2 + [(shape.hidden, kv)] * 2
    ends += [(shape.hidden, shape.intermediate)] * 3
    layer_parameters = sum(source * target for source, target in ends)
    head_parameters = shape.hidden * shape.vocab
    adapter_parameters = shape.layers * rank * sum(source + target for source, target in ends) if case.loras else 0
    weights_bytes = 2 * (shape.layers * layer_parameters + head_parameters)
    kv_bytes = 2 * 2 * shape.layers * kv * (PROMPT_TOKENS + OUTPUT_TOKENS / 2)
    step_s = (weights_bytes + case.requests * (2 * adapter_parameters + kv_bytes)) / rates.read_bytes_per_s
    prefill_flops = 2 * case.requests * PROMPT_TOKENS * (shape.layers * layer_parameters + adapter_parameters)
    return case.requests * OUTPUT_TOKENS / (OUTPUT_TOKENS * step_s + prefill_flops / rates.gemm_flops_per_s)


if __name__ == "__main__":
    main()
