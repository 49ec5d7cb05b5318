"""Time of one decode step of a 246 M-parameter Llama shape on CPU, with and without fine-tunes.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=10000 python benchmarks/step.py

Random bfloat16 weights (hidden 1024, 16 layers, 16 heads, 4 KV heads, intermediate 2816, vocabulary 32,000); fine-tunes
are LoRAs of rank 16 on all linears of all layers. The limit is the bytes that a step must read over the read bandwidth
measured in the same run; the baseline is a plain eager step over the same weights. Threads that sleep at once when
they wait (PASSIVE alone) took 65 ms where a short spin took 48 on idle cores; endless spinning on busy cores takes ten
times as long.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from blockc.plan import ExecutionPlan, KvLayerEntry
from blockc.zoo import Zoo
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.request import Sampling
from blockc_runtime.step import Launch, Row, Step
from tests.runtime.executor import structures
from tests.runtime.executor.plans import BlockSpec, ModelSpec, PlanBuilder, Term

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER, VOCAB = 1024, 16, 16, 4, 2816, 32000
SIZE = HIDDEN // HEADS
RANK = 16
PAGE_TOKENS = 16
DTYPE, CODE = torch.bfloat16, "BF16"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).mul_(shape[-1] ** -0.5).to(DTYPE)


def model() -> ModelSpec:
    attention = structures.llama_attention(HIDDEN, HEADS, KV_HEADS, SIZE, 1e-5, CODE)
    mlp = structures.llama_mlp(HIDDEN, INNER, 1e-5, CODE)
    kv = KV_HEADS * SIZE
    ones = torch.ones(HIDDEN, dtype=DTYPE)
    blocks = [
        BlockSpec(
            structure=structures.llama_embed(VOCAB, HIDDEN, CODE),
            tensors={"embed_tokens.weight": random(VOCAB, HIDDEN)},
        )
    ]
    for _ in range(LAYERS):
        blocks.append(
            BlockSpec(
                structure=attention,
                tensors={
                    "norm": ones,
                    "q_proj": random(HIDDEN, HIDDEN),
                    "k_proj": random(kv, HIDDEN),
                    "v_proj": random(kv, HIDDEN),
                    "o_proj": random(HIDDEN, HIDDEN),
                },
                binds={"scale": SIZE**-0.5, "window": None, "softcap": None},
                has_context=True,
            )
        )
        blocks.append(
            BlockSpec(
                structure=mlp,
                tensors={
                    "norm": ones,
                    "gate_proj": random(INNER, HIDDEN),
                    "up_proj": random(INNER, HIDDEN),
                    "down_proj": random(HIDDEN, INNER),
                },
            )
        )
    blocks.append(
        BlockSpec(
            structure=structures.llama_head(VOCAB, HIDDEN, 1e-5, CODE),
            tensors={"norm": ones, "lm_head": random(VOCAB, HIDDEN)},
        )
    )
    return ModelSpec(
        blocks=tuple(blocks),
        prelude=BlockSpec(
            structure=structures.llama_prelude(SIZE // 2, CODE),
            tensors={"inv_freq": 10000.0 ** (-torch.arange(0, SIZE, 2).float() / SIZE)},
        ),
        kv=(KvLayerEntry(kv_heads=KV_HEADS, head_dim=SIZE, window=None, dtype=CODE),) * LAYERS,
        dtype=DTYPE,
        vocab=VOCAB,
        max_len=4096,
    )


def lora() -> tuple[Term, ...]:
    kv = KV_HEADS * SIZE
    attention = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, kv), "v": (HIDDEN, kv), "o": (HIDDEN, HIDDEN)}
    mlp = {"gate": (HIDDEN, INNER), "up": (HIDDEN, INNER), "down": (INNER, HIDDEN)}
    terms = []
    for layer in range(LAYERS):
        for prefix, sites, offset in (("self_attn", attention, 1), ("mlp", mlp, 2)):
            for name, (fan_in, fan_out) in sites.items():
                terms.append(
                    Term(
                        occurrence=2 * layer + offset,
                        site=f"{prefix}.{name}_proj",
                        a=random(RANK, fan_in),
                        b=random(fan_out, RANK),
                        scale=2.0,
                    )
                )
    return tuple(terms)


class PlainEager:
    """The same decode step as one would write it first: dense linears, `bmm` of stacked LoRAs, GQA attention."""

    def __init__(self, spec: ModelSpec, loras: list[tuple[Term, ...]], context: int) -> None:
        self.blocks = [block.tensors for block in spec.blocks]
        assert spec.prelude is not None
        angles = context * spec.prelude.tensors["inv_freq"]
        self.cos, self.sin = (f(torch.cat([angles, angles])).to(DTYPE) for f in (torch.cos, torch.sin))
        self.caches = [torch.randn(2, len(loras), KV_HEADS, context + 1, SIZE).to(DTYPE) for _ in range(LAYERS)]
        self.sides: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
        for members in zip(*loras, strict=True):
            key = members[0].occurrence, members[0].site.rsplit(".")[-1]
            stacks = torch.stack([m.a for m in members]), torch.stack([m.scale * m.b for m in members])
            self.sides[key] = stacks

    def linear(self, x: torch.Tensor, block: int, name: str, loras: bool) -> torch.Tensor:
        """``x [n, in] -> [n, out]``."""
        y = linear(x, self.blocks[block][name])
        if loras:
            a, b = self.sides[block, name]
            inner = torch.bmm(a[: len(x)], x.unsqueeze(2))
            y += torch.bmm(b[: len(x)], inner).squeeze(2)
        return y

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary position embedding; all rows stand at one position."""
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def step(self, tokens: torch.Tensor, *, loras: bool) -> torch.Tensor:
        """``tokens [n]`` -> logits ``[n, vocab]``."""
        count = len(tokens)
        x = self.blocks[0]["embed_tokens.weight"][tokens]
        for layer in range(LAYERS):
            block = 2 * layer + 1
            n = torch.rms_norm(x, (HIDDEN,), self.blocks[block]["norm"], 1e-5)
            q, k, v = (self.linear(n, block, f"{name}_proj", loras).view(count, -1, 1, SIZE) for name in "qkv")
            keys, values = self.caches[layer][:, :count]
            keys[:, :, -1:], values[:, :, -1:] = self.rotate(k), v
            a = scaled_dot_product_attention(self.rotate(q), keys, values, enable_gqa=True)
            x = x + self.linear(a.reshape(count, HIDDEN), block, "o_proj", loras)
            block += 1
            n = torch.rms_norm(x, (HIDDEN,), self.blocks[block]["norm"], 1e-5)
            gate, up = (self.linear(n, block, f"{name}_proj", loras) for name in ("gate", "up"))
            x = x + self.linear(silu(gate) * up, block, "down_proj", loras)
        x = torch.rms_norm(x, (HIDDEN,), self.blocks[-1]["norm"], 1e-5)
        return linear(x, self.blocks[-1]["lm_head"])


def step_of(plan: ExecutionPlan, chains: list[int], *, start: int, count: int) -> Step:
    """``count`` tokens of a request for each chain, behind ``start`` that are cached."""
    pages = (start + count - 1) // PAGE_TOKENS + 1
    rows = tuple(
        Row(
            request=str(i), chain=chain, tokens=tuple(1 + (i + n) % 90 for n in range(count)), start=start,
            pages=(tuple(range(i * pages, (i + 1) * pages)),), samples=1, sampling=Sampling(), output_index=0,
        )
        for i, chain in enumerate(chains)
    )  # fmt: skip
    everyone = tuple(range(len(rows)))
    launches = tuple(Launch(instance=0, segment=s, micro_batch=0, rows=everyone) for s in range(len(plan.segments)))
    return Step(id=0, epoch=0, rows=rows, launches=launches)


def best_ms(call: Callable[[], Any], repeats: int) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def read_bandwidth() -> float:
    """Bytes per second of summing 256 MiB."""
    data = torch.ones(32 << 20, dtype=torch.int64)
    return data.nbytes / best_ms(data.sum, 10) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--context", type=int, default=191, help="tokens cached before the step")
    parser.add_argument("--repeats", type=int, default=10, help="of which the fastest counts")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args()
    torch.manual_seed(0)
    most = max(options.batches)
    bandwidth = read_bandwidth()
    print(f"threads {torch.get_num_threads()}, read bandwidth {bandwidth / 1e9:.1f} GB/s")
    spec, loras = model(), [lora() for _ in range(most)]
    plain = PlainEager(spec, loras, options.context)
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder) / "zoo", create=True)
        pages = most * (options.context // PAGE_TOKENS + 1)
        builder = PlanBuilder(zoo, pages=pages, page_tokens=PAGE_TOKENS)
        chains = builder.add(spec, ((), *loras))
        plan = builder.build()
        builder.tensors.clear()
        begin = time.perf_counter()
        executor = TorchExecutor(plan, zoo, device="cpu")
        print(f"loaded in {time.perf_counter() - begin:.1f} s")
        for batch in options.batches:
            for tuned in (False, True):
                used = chains[1 : batch + 1] if tuned else chains[:1] * batch
                step = step_of(plan, used, start=options.context, count=1)
                report(executor, plain, step, tuned, bandwidth, options)


def report(
    executor: TorchExecutor,
    plain: PlainEager,
    step: Step,
    tuned: bool,
    bandwidth: float,
    options: argparse.Namespace,
) -> None:
    """Measure ours and the baseline in turns, so that both meet the same load."""
    rows = len(step.rows)
    tokens = torch.tensor([row.tokens[0] for row in step.rows])

    def ours() -> None:
        executor.submit(step)
        result = executor.collect()
        assert all(row.fault is None for row in result.rows), result.rows[0].fault

    def baseline() -> None:
        with torch.inference_mode():
            plain.step(tokens, loras=tuned)

    turns = [(best_ms(ours, options.repeats), best_ms(baseline, options.repeats)) for _ in range(2)]
    took, eager = (min(times) for times in zip(*turns, strict=True))
    count = rows if tuned else 0
    bytes_read = step_bytes(rows, count, options.context)
    limit = bytes_read / bandwidth * 1e3
    print(
        f"rows {rows:2} LoRAs {count:2}: {took:6.1f} ms, {bytes_read / took / 1e6:4.1f} GB/s, "
        f"{took / limit:.2f} x the limit of {limit:.1f} ms, plain eager {eager:6.1f} ms "
        f"({eager / took:.2f} x ours)",
        flush=True,
    )
    if options.profile:
        with torch.profiler.profile() as profile:
            ours()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22))


def step_bytes(rows: int, loras: int, context: int) -> int:
    """Bytes that a decode step must read at least: base weights, LoRAs, KV."""
    kv = KV_HEADS * SIZE
    layer = {
        "square": 2 * HIDDEN * HIDDEN,
        "kv": 2 * HIDDEN * kv,
        "mlp": 3 * HIDDEN * INNER,
    }
    base = LAYERS * sum(layer.values()) + VOCAB * HIDDEN
    sides = RANK * LAYERS * (2 * 2 * HIDDEN + 2 * (HIDDEN + kv) + 3 * (HIDDEN + INNER))
    cache = rows * LAYERS * 2 * kv * (context + 1)
    return 2 * (base + loras * sides + cache)


if __name__ == "__main__":
    main()
