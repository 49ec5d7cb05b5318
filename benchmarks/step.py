"""Time of one decode step of a 246 M-parameter Llama shape on CPU, with and without fine-tunes.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step.py

Random bfloat16 weights (hidden 1024, 16 layers, 16 heads, 4 KV heads, intermediate 2816, vocabulary 32,000); fine-tunes
are LoRAs of rank 16 on all linears of all layers. The limit is the bytes that a step must read over the read bandwidth
measured in the same run; the baseline is a plain eager step over the same weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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
    return (torch.randn(*shape) * shape[-1] ** -0.5).to(DTYPE)


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


def decode_step(plan: ExecutionPlan, chains: list[int], context: int) -> Step:
    """One token for each chain, behind ``context`` cached tokens."""
    pages = context // PAGE_TOKENS + 1
    rows = tuple(
        Row(
            request=str(i),
            chain=chain,
            tokens=(i + 1,),
            start=context,
            pages=(tuple(range(i * pages, (i + 1) * pages)),),
            samples=1,
            sampling=Sampling(),
            output_index=0,
        )
        for i, chain in enumerate(chains)
    )
    everyone = tuple(range(len(rows)))
    launches = tuple(
        Launch(instance=0, segment=segment, micro_batch=0, rows=everyone)
        for segment in range(len(plan.segments))
    )
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
    parser.add_argument("--context", type=int, default=191)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    most = max(options.batches)
    bandwidth = read_bandwidth()
    print(f"threads {torch.get_num_threads()}, read bandwidth {bandwidth / 1e9:.1f} GB/s")
    with tempfile.TemporaryDirectory() as folder:
        zoo = Zoo(Path(folder) / "zoo", create=True)
        pages = most * (options.context // PAGE_TOKENS + 1)
        builder = PlanBuilder(zoo, pages=pages, page_tokens=PAGE_TOKENS)
        chains = builder.add(model(), ((), *(lora() for _ in range(most))))
        plan = builder.build()
        begin = time.perf_counter()
        executor = TorchExecutor(plan, zoo, device="cpu")
        print(f"loaded in {time.perf_counter() - begin:.1f} s")
        for batch in options.batches:
            for tuned in (False, True):
                used = chains[1 : batch + 1] if tuned else chains[:1] * batch
                step = decode_step(plan, used, options.context)

                def run(step: Step = step) -> None:
                    executor.submit(step)
                    result = executor.collect()
                    assert all(row.fault is None for row in result.rows), result.rows[0].fault

                took = best_ms(run, options.repeats)
                bytes_read = step_bytes(batch, batch if tuned else 0, options.context)
                limit = bytes_read / bandwidth * 1e3
                print(
                    f"rows {batch:2} LoRAs {batch if tuned else 0:2}: {took:6.1f} ms, "
                    f"{bytes_read / took / 1e6:5.1f} GB/s, limit {limit:5.1f} ms, "
                    f"{took / limit:.2f} x the limit",
                    flush=True,
                )
                if options.profile:
                    with torch.profiler.profile() as profile:
                        for _ in range(3):
                            run()
                    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=22, max_name_column_width=40))


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
