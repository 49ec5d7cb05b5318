"""Decode steps and prompts of an 8B Llama shape on a GPU, on the base and on LoRAs of mixed ranks.

    python -m benchmarks.cuda_step [--json FILE]

Decode steps, eight prompts, and steps in which a part of a prompt is read beside rows that decode. Three ways of the
same executor in one run: torch's functions op by op, Triton's kernels op by op, and recorded graphs.
Layers share their weights and so do a LoRA's, so that it loads in a minute; a layer is many times a GPU's second
cache, so every step reads it anew 32 times. The limit is the bytes that a step must read over the rate of a copy, or
the multiplications of a prompt over the rate of a large product, both measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.fleet import SHAPES
from benchmarks.rates import origin
from benchmarks.step import PAGE_TOKENS, step_of
from blockc.plan import ExecutionPlan, KvLayerEntry
from blockc.zoo import Zoo
from blockc_runtime.executor.recorder import recorder_for
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.ops import triton_
from blockc_runtime.step import Step
from tests.runtime.executor import structures
from tests.runtime.executor.plans import BlockSpec, ModelSpec, PlanBuilder, Term

DTYPE, CODE = torch.bfloat16, "BF16"
RANKS = (8, 16, 64)
WAYS = ("torch", "triton", "graphs")


class Shape:
    """Sizes of a model, and what follows from them."""

    def __init__(self, name: str) -> None:
        own = SHAPES[name]
        self.hidden, self.layers, self.heads, self.kv_heads = own.hidden, own.layers, own.heads, own.kv_heads
        self.inner, self.vocab = own.intermediate, own.vocab
        self.size = self.hidden // self.heads
        self.kv = self.kv_heads * self.size
        self.attention = {"q": self.hidden, "k": self.kv, "v": self.kv, "o": self.hidden}
        self.mlp = {
            "gate": (self.hidden, self.inner),
            "up": (self.hidden, self.inner),
            "down": (self.inner, self.hidden),
        }

    @property
    def matrices(self) -> int:
        """Values of all layers' matrices."""
        layer = self.hidden * sum(self.attention.values()) + sum(a * b for a, b in self.mlp.values())
        return self.layers * layer

    def lora_values(self, rank: int) -> int:
        """Values of one LoRA on all linears of all layers."""
        ends = [(self.hidden, out) for out in self.attention.values()] + list(self.mlp.values())
        return self.layers * rank * sum(a + b for a, b in ends)

    def spec(self) -> ModelSpec:
        """The model, every layer with the same weights."""
        ones = torch.ones(self.hidden, dtype=DTYPE)
        attention = BlockSpec(
            structure=structures.llama_attention(self.hidden, self.heads, self.kv_heads, self.size, 1e-5, CODE),
            tensors={"norm": ones} | {f"{n}_proj": random(out, self.hidden) for n, out in self.attention.items()},
            binds={"scale": self.size**-0.5, "window": None, "softcap": None},
            has_context=True,
        )
        mlp = BlockSpec(
            structure=structures.llama_mlp(self.hidden, self.inner, 1e-5, CODE),
            tensors={"norm": ones} | {f"{name}_proj": random(out, into) for name, (into, out) in self.mlp.items()},
        )
        embed = BlockSpec(
            structure=structures.llama_embed(self.vocab, self.hidden, CODE),
            tensors={"embed_tokens.weight": random(self.vocab, self.hidden)},
        )
        head = BlockSpec(
            structure=structures.llama_head(self.vocab, self.hidden, 1e-5, CODE),
            tensors={"norm": ones, "lm_head": random(self.vocab, self.hidden)},
        )
        return ModelSpec(
            blocks=(embed, *[attention, mlp] * self.layers, head),
            prelude=BlockSpec(
                structure=structures.llama_prelude(self.size // 2, CODE),
                tensors={"inv_freq": 10000.0 ** (-torch.arange(0, self.size, 2).float() / self.size)},
            ),
            kv=(KvLayerEntry(kv_heads=self.kv_heads, head_dim=self.size, window=None, dtype=CODE),) * self.layers,
            dtype=DTYPE,
            vocab=self.vocab,
            max_len=8192,
        )

    def lora(self, rank: int) -> tuple[Term, ...]:
        """On all linears, the same in every layer."""
        ends = {f"self_attn.{n}_proj": (self.hidden, out, 1) for n, out in self.attention.items()}
        ends |= {f"mlp.{n}_proj": (into, out, 2) for n, (into, out) in self.mlp.items()}
        made = {site: (random(rank, into), random(out, rank)) for site, (into, out, _) in ends.items()}
        return tuple(
            Term(occurrence=2 * layer + ends[site][2], site=site, a=a, b=b, scale=2.0)
            for layer in range(self.layers)
            for site, (a, b) in made.items()
        )


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).mul_(shape[-1] ** -0.5).to(DTYPE).cpu()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Every call waits for the device by itself."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def rates(repeats: int) -> dict[str, float]:
    """Bytes per second that a copy reads and writes, and multiplications and additions of a large product."""
    source = torch.ones((1 << 30) if DEVICE == "cuda" else (1 << 24), dtype=torch.bfloat16, device=DEVICE)
    target = torch.empty_like(source)
    size = 8192 if DEVICE == "cuda" else 256
    left, right = (torch.randn(size, size, device=DEVICE).to(DTYPE) for _ in range(2))
    copied = median_ms(lambda: (target.copy_(source), wait()), repeats)
    multiplied = median_ms(lambda: (left @ right, wait()), repeats)
    return {"copy_bytes_per_s": 2e3 * source.nbytes / copied, "gemm_flops_per_s": 2e3 * size**3 / multiplied}


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Runner:
    """An executor in one of three ways. Its steps follow each other as an engine's do: one is queued behind another."""

    def __init__(self, way: str, plan: ExecutionPlan, zoo: Zoo) -> None:
        os.environ["BLOCKC_TRITON"] = "0" if way == "torch" else "1"
        triton_.problem.cache_clear()
        self.executor = TorchExecutor(
            plan, zoo, device=DEVICE, recorder=recorder_for if way == "graphs" else lambda device: None
        )

    def logits(self, step: Step) -> dict[int, torch.Tensor]:
        """Of the last token of each row."""
        found: dict[int, torch.Tensor] = {}
        self.executor.logits_tap = lambda row, logits: found.update({row: logits[-1].clone()})
        self(step)
        self.executor.logits_tap = None
        return found

    def __call__(self, step: Step) -> None:
        """Run it and wait."""
        self.executor.submit(step)
        self._collect()

    def ms_each(self, step: Step, repeats: int) -> tuple[float, float]:
        """(medians of a step among steps, of what the host does to launch it)."""
        times, launches = [], []
        for _ in range(3):
            self(step)
        self.executor.submit(step)
        begin = time.perf_counter()
        for _ in range(repeats):
            self.executor.submit(step)
            launched = time.perf_counter()
            self._collect()
            end = time.perf_counter()
            launches.append(launched - begin)
            times.append(end - begin)
            begin = end
        self._collect()
        return statistics.median(times) * 1e3, statistics.median(launches) * 1e3

    def kernels(self, step: Step, most: int, repeats: int = 3) -> dict[str, list[float]]:
        """By kernel: microseconds and launches of a step, of those that take most."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(repeats):
                self(step)
        found = sorted(profiler.key_averages(), key=lambda own: -own.self_device_time_total)
        each = [(own.key, own.self_device_time_total / repeats, own.count / repeats) for own in found]
        total = ("all", *(sum(own[i] for own in each) for i in (1, 2)))
        return {
            f"{i}: {own[0]}"[:120]: [round(own[1], 1), round(own[2], 1)] for i, own in enumerate([total, *each[:most]])
        }

    def _collect(self) -> None:
        for row in self.executor.collect().rows:
            assert row.fault is None, row.fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--loras", type=int, nargs="+", default=[0, 1, 16, 64])
    parser.add_argument("--context", type=int, default=1024, help="tokens cached before a step")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt, of which 8 are read at once")
    parser.add_argument("--chunk", type=int, default=256, help="tokens of a prompt beside rows that decode")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--kernels", type=int, default=0, help="of each case so many that take most time, on a GPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    shape, measured = Shape(options.shape), rates(options.repeats)
    report: dict[str, Any] = {"origin": origin("benchmarks.cuda_step"), "rates": measured, "cases": []}
    if DEVICE == "cuda":
        report["device"] = torch.cuda.get_device_name()
    print(json.dumps({key: report[key] for key in report if key != "cases"}), flush=True)
    ranks = [RANKS[i % len(RANKS)] for i in range(max(options.loras))]
    firsts: dict[tuple[int, int, int, int], dict[int, torch.Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder) / "zoo", create=True)
        plan = plan_of(shape, zoo, ranks, options)
        for way in options.ways:
            begin = time.perf_counter()
            runner = Runner(way, plan, zoo)
            print(f"{way}: loaded in {time.perf_counter() - begin:.1f} s", flush=True)
            decoding = [(n, options.context, 1, chunk) for n in options.rows for chunk in (0, options.chunk)]
            for rows, start, count, chunk in ((8, 0, options.prompt, 0), *decoding):
                for loras in sorted({min(n, rows) for n in options.loras}):
                    chains = [1 + i % loras if loras else 0 for i in range(rows)]
                    step = step_of(plan, chains, start=start, count=count)
                    step = with_prompt(plan, step, chunk) if chunk else step
                    limit = limit_ms(shape, measured, rows, ranks[:loras], start, count, chunk)
                    begin = time.perf_counter()
                    logits = runner.logits(step)
                    first_s = time.perf_counter() - begin
                    wanted = firsts.setdefault((rows, loras, count, chunk), logits)
                    error = max(float((logits[i] - wanted[i]).norm() / wanted[i].norm()) for i in logits)
                    took, launch = runner.ms_each(step, options.repeats)
                    case = {
                        "way": way, "rows": rows, "loras": loras, "tokens": count, "chunk": chunk, "ms": round(took, 3),
                        "launch_ms": round(launch, 3), "first_s": round(first_s, 2), "limit_ms": round(limit, 3),
                        "of_limit": round(limit / took, 3), "tokens_per_s": round(1e3 * (rows * count + chunk) / took),
                        "replays": runner.executor.counts.replays, "op_by_op": runner.executor.counts.op_by_op,
                        "logits_differ_by": round(error, 5),
                    }  # fmt: skip
                    print(json.dumps(case), flush=True)
                    if options.kernels and DEVICE == "cuda":
                        case["kernels"] = runner.kernels(step, options.kernels)
                        print(*(f"    {own}: {name}" for name, own in case["kernels"].items()), sep="\n", flush=True)
                    report["cases"].append(case)
                    if options.json is not None:
                        options.json.write_text(json.dumps(report, indent=2) + "\n")
            runner.executor.close()
            del runner
            if DEVICE == "cuda":
                torch.cuda.empty_cache()


def plan_of(shape: Shape, zoo: Zoo, ranks: list[int], options: argparse.Namespace) -> ExecutionPlan:
    """The base and a LoRA of each rank, with pages for the largest step."""
    rows = max(options.rows)
    tokens = max(rows * (options.context + 1) + options.chunk, 8 * options.prompt)
    builder = PlanBuilder(zoo, pages=tokens // PAGE_TOKENS + rows + 8, page_tokens=PAGE_TOKENS)
    builder.add(shape.spec(), ((), *map(shape.lora, ranks)))
    plan = builder.build(target="cuda" if DEVICE == "cuda" else "cpu")
    batching = plan.batching.model_copy(update={"max_rows": rows, "overlaps": DEVICE == "cuda"})
    return plan.model_copy(update={"batching": batching})


def with_prompt(plan: ExecutionPlan, step: Step, count: int) -> Step:
    """``count`` tokens of a prompt beside a step's rows, on the fine-tune of the first."""
    first = step.rows[0]
    taken = 1 + max(page for row in step.rows for page in row.pages[0] if page is not None)
    pages = tuple(range(taken, taken + (count - 1) // PAGE_TOKENS + 1))
    row = replace(first, request="prompt", tokens=tuple(1 + n % 90 for n in range(count)), start=0, pages=(pages,))
    rows = (*step.rows, row)
    launches = tuple(replace(launch, rows=tuple(range(len(rows)))) for launch in step.launches)
    return replace(step, rows=rows, launches=launches)


def limit_ms(
    shape: Shape, measured: dict[str, float], rows: int, ranks: list[int], start: int, count: int, chunk: int
) -> float:
    """A step's bytes over the rate of a copy, or its multiplications over that of a product, whichever takes longer."""
    head = shape.vocab * shape.hidden
    cached = rows * (start + count) * shape.layers * 2 * shape.kv
    values = shape.matrices + head + sum(map(shape.lora_values, ranks)) + cached
    tokens, heads = rows * count + chunk, rows + (chunk > 0)
    own = [shape.lora_values(ranks[i % len(ranks)]) * count for i in range(rows)] if ranks else []
    flops = 2 * (shape.matrices * tokens + head * heads + sum(own) + sum(own[:1]) * chunk)
    return 1e3 * max(2 * values / measured["copy_bytes_per_s"], flops / measured["gemm_flops_per_s"])


if __name__ == "__main__":
    main()
