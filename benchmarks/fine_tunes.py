"""What fine-tunes of several kinds cost in one decode step, and what those who have none pay for them.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=10000 python -m benchmarks.fine_tunes [--out results.json]

A Llama shape (hidden 1024, 16 heads, 4 KV heads, intermediate 2816, vocabulary 32,000) of some layers, random weights,
16 rows with 191 tokens in their cache. Every figure is a ratio of steps that were measured in turns in this run: the
median of pairs, with the 95 % interval of that median.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import step as shape
from benchmarks.pairs import paired, text_of, write
from blockc.ir import DTYPE_CODE
from blockc.zoo import Zoo
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.step import Step
from tests.runtime.executor.plans import Part, PlanBuilder, Term

ROWS, CONTEXT = 16, 191
_LINEARS = {
    "self_attn.q_proj": (1, "square"), "self_attn.k_proj": (1, "kv"), "self_attn.v_proj": (1, "kv"),
    "self_attn.o_proj": (1, "square"), "mlp.gate_proj": (2, "up"), "mlp.up_proj": (2, "up"),
    "mlp.down_proj": (2, "down"),
}  # fmt: skip


def ends(name: str) -> tuple[int, int]:
    """(in, out) of a linear."""
    kv = shape.KV_HEADS * shape.SIZE
    return {
        "square": (shape.HIDDEN, shape.HIDDEN), "kv": (shape.HIDDEN, kv),
        "up": (shape.HIDDEN, shape.INNER), "down": (shape.INNER, shape.HIDDEN),
    }[_LINEARS[name][1]]  # fmt: skip


def places() -> list[tuple[int, str, int, int]]:
    """(occurrence, site, in, out) of every linear of every layer."""
    return [
        (2 * layer + offset, name, *ends(name))
        for layer in range(shape.LAYERS)
        for name, (offset, _) in _LINEARS.items()
    ]


def lora(rank: int) -> list[Term | Part]:
    return [
        Term(occurrence=at, site=site, a=shape.random(rank, fan_in), b=shape.random(fan_out, rank), scale=2.0)
        for at, site, fan_in, fan_out in places()
    ]


def scales(codec: str, sites: Sequence[tuple[int, str, int]]) -> list[Term | Part]:
    return [
        Part(occurrence=at, site=site, kind="linear", codec=codec, tensors={"value": torch.rand(size) + 0.5})
        for at, site, size in sites
    ]


def dora() -> list[Term | Part]:
    return [*lora(16), *scales("out_scale", [(at, site, fan_out) for at, site, _, fan_out in places()])]


def ia3() -> list[Term | Part]:
    down = [(at, site, fan_in) for at, site, fan_in, _ in places() if site == "mlp.down_proj"]
    outputs = [(at, site, out) for at, site, _, out in places() if site in ("self_attn.k_proj", "self_attn.v_proj")]
    return [*scales("in_scale", down), *scales("out_scale", outputs)]


def bottleneck(width: int = 64) -> list[Term | Part]:
    return [
        Part(
            occurrence=occurrence,
            site="residual.0",
            kind="residual",
            codec="bottleneck",
            tensors={
                "down": shape.random(width, shape.HIDDEN), "down_bias": shape.random(width),
                "up": shape.random(shape.HIDDEN, width), "up_bias": shape.random(shape.HIDDEN),
            },
            scalars={"activation": "relu", "reads": "sublayer", "scale": 1.0},
        )
        for occurrence in range(1, 2 * shape.LAYERS + 1)
    ]  # fmt: skip


class Loaded:
    """An executor with a base and fine-tunes by name."""

    def __init__(
        self, folder: Path, spec: Any, tunes: Mapping[str, Sequence[Sequence[Term | Part]]], device: str
    ) -> None:
        zoo = Zoo(folder, create=True)
        builder = PlanBuilder(zoo, pages=ROWS * (CONTEXT // shape.PAGE_TOKENS + 1), page_tokens=shape.PAGE_TOKENS)
        chains = builder.add(spec, ((), *(tuple(own) for members in tunes.values() for own in members)))
        self.plan = builder.build()
        self.base, rest = chains[0], chains[1:]
        self.chains: dict[str, list[int]] = {}
        for name, members in tunes.items():
            self.chains[name], rest = rest[: len(members)], rest[len(members) :]
        self.executor = TorchExecutor(self.plan, zoo, device=device)

    def step(self, **counts: int) -> Step:
        """A decode step: so many rows of each name, and rows of the base up to all."""
        used = [chain for name, count in counts.items() for chain in self.chains[name][:count]]
        return shape.step_of(self.plan, [self.base] * (ROWS - len(used)) + used, start=CONTEXT, count=1)

    def run(self, step: Step) -> None:
        """One step; a fault of any row ends the benchmark."""
        self.executor.submit(step)
        result = self.executor.collect()
        assert all(row.fault is None for row in result.rows), result.rows[0].fault

    def ops(self, step: Step) -> Counter[str]:
        """How often each op of torch is called in a step."""
        counter: Counter[str] = Counter()

        class Count(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                counter[str(func)] += 1
                return func(*args, **(kwargs or {}))

        with Count():
            self.run(step)
        return counter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    options = parser.parse_args()
    torch.manual_seed(0)
    shape.LAYERS, shape.DTYPE = options.layers, getattr(torch, options.dtype)
    shape.CODE = DTYPE_CODE[options.dtype]
    spec = shape.model()
    kinds = {"lora": lora(16), "dora": dora(), "ia3": ia3(), "bottleneck": bottleneck()}
    tunes: dict[str, list[list[Term | Part]]] = {
        "lora": [lora(16) for _ in range(ROWS)],
        "rank8": [lora(8) for _ in range(8)], "rank64": [lora(64) for _ in range(8)],
        **{name: [kinds[name]] * 4 for name in ("dora", "ia3", "bottleneck")},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        full = Loaded(Path(folder) / "full", spec, tunes, options.device)
        bare = Loaded(Path(folder) / "bare", spec, {}, options.device)
        found = measure(full, bare, options.pairs)
    found["side_cost"] = _side_cost(found, options.layers)
    for name, value in found.items():
        print(f"{name:44} {text_of(value)}", flush=True)
    if options.out is not None:
        write(options.out, "benchmarks.fine_tunes", found, device=options.device, commit=options.commit)


def measure(full: Loaded, bare: Loaded, pairs: int) -> dict[str, Any]:
    base, plain = full.step(), bare.step()
    mixed = full.step(lora=4, dora=4, ia3=4, bottleneck=4)
    steps = {
        "16 LoRAs of rank 16 / base": full.step(lora=16),
        "4 LoRA, 4 DoRA, 4 IA3, 4 bottleneck / base": mixed,
        "8 rows of rank 8 beside base / base": full.step(rank8=8),
    }
    found: dict[str, Any] = {
        name: paired(lambda own=own: full.run(own), lambda: full.run(base), pairs)  # type: ignore[misc]
        for name, own in steps.items()
    }
    wide, both = full.step(rank64=8), full.step(rank8=8, rank64=8)
    found["8 of rank 8 beside rank 64 / rank 64"] = paired(lambda: full.run(both), lambda: full.run(wide), pairs)
    found["base rows, fine-tunes loaded / none loaded"] = paired(
        lambda: full.run(base), lambda: bare.run(plain), 3 * pairs
    )
    found["base rows launch the same ops"] = full.ops(base) == bare.ops(plain)
    found["ops of a base step"] = sum(bare.ops(plain).values())
    found["ops of 16 LoRAs"] = sum(full.ops(full.step(lora=16)).values())
    return found


def _side_cost(found: Mapping[str, Any], layers: int) -> float:
    """Time of a byte of LoRAs beside that of a byte of weights: `SIDE_COST` of `blockc.merge.pays`."""
    sides = ROWS * sum(16 * (fan_in + fan_out) for _, _, fan_in, fan_out in places())
    weights = sum(fan_in * fan_out for _, _, fan_in, fan_out in places()) + shape.VOCAB * shape.HIDDEN
    return (found["16 LoRAs of rank 16 / base"]["ratio"] - 1) / (sides / weights) if layers else 0.0


if __name__ == "__main__":
    main()
