"""What a plan predicts, the tensors that the loader makes, and what a fresh process takes: one set of bytes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from blockc.ir import Side, Site, TensorRef, low_rank, parse_structure
from blockc.ir.layout import (
    KERNEL_BYTES,
    KvPages,
    Layout,
    ResidentTensor,
    activation_bytes,
    block_tensors,
    chain_sides_bytes,
    kernel_count,
    layout,
)
from blockc.plan import ExecutionPlan, KvLayerEntry
from blockc.zoo import Zoo
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.ops.linear.by_kernel import kernel_weights
from blockc_runtime.ops.linear.weights import PackedWeights, packs
from tests.runtime.executor import structures
from tests.runtime.executor.plans import BlockSpec, ModelSpec, PlanBuilder, Term

TOKENS, ROWS, CONTEXT, PAGE_TOKENS = 256, 8, 128, 16
WITHIN = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    hidden: int
    layers: int
    inner: int
    vocab: int
    ranks: tuple[int, ...]  # of each LoRA

    heads: int = 4

    @property
    def size(self) -> int:
        return self.hidden // self.heads


SMALL = Shape(hidden=128, layers=2, inner=256, vocab=512, ranks=(3, 16, 16))
# 28 M parameters.
LARGE = Shape(hidden=512, layers=8, inner=1408, vocab=8192, ranks=(16, 16, 16, 16))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).mul_(shape[-1] ** -0.5)


def tied_llama(shape: Shape) -> ModelSpec:
    """Float32, with one table for embedding and head."""
    hidden, inner, vocab = shape.hidden, shape.inner, shape.vocab
    attention = structures.llama_attention(hidden, shape.heads, shape.heads, shape.size, 1e-5, "F32")
    mlp = structures.llama_mlp(hidden, inner, 1e-5, "F32")
    table, ones = random(vocab, hidden), torch.ones(hidden)
    blocks = [BlockSpec(structure=structures.llama_embed(vocab, hidden, "F32"), tensors={"embed_tokens.weight": table})]
    for _ in range(shape.layers):
        projections = {f"{name}_proj": random(hidden, hidden) for name in "qkvo"}
        blocks.append(
            BlockSpec(
                structure=attention,
                tensors={"norm": ones, **projections},
                binds={"scale": shape.size**-0.5, "window": None, "softcap": None},
                has_context=True,
            )
        )
        halves = {name: random(inner, hidden) for name in ("gate_proj", "up_proj")}
        blocks.append(BlockSpec(structure=mlp, tensors={"norm": ones, **halves, "down_proj": random(hidden, inner)}))
    blocks.append(
        BlockSpec(structure=structures.llama_head(vocab, hidden, 1e-5, "F32"), tensors={"norm": ones, "lm_head": table})
    )
    return ModelSpec(
        blocks=tuple(blocks),
        prelude=BlockSpec(
            structure=structures.llama_prelude(shape.size // 2, "F32"),
            tensors={"inv_freq": 10000.0 ** (-torch.arange(0, shape.size, 2).float() / shape.size)},
        ),
        kv=(KvLayerEntry(kv_heads=shape.heads, head_dim=shape.size, window=None, dtype="F32"),) * shape.layers,
        dtype=torch.float32,
        vocab=vocab,
        max_len=CONTEXT,
    )


def sites(shape: Shape) -> list[tuple[int, str, int, int]]:
    """(occurrence, site, in, out) of all linears but the head."""
    found = []
    for layer in range(shape.layers):
        found += [(1 + 2 * layer, f"self_attn.{name}_proj", shape.hidden, shape.hidden) for name in "qkvo"]
        for name, ends in (("gate", (0, 1)), ("up", (0, 1)), ("down", (1, 0))):
            width = (shape.hidden, shape.inner)
            found.append((2 + 2 * layer, f"mlp.{name}_proj", width[ends[0]], width[ends[1]]))
    return found


def loras(shape: Shape) -> tuple[tuple[Term, ...], ...]:
    return tuple(
        tuple(
            Term(occurrence=occurrence, site=site, a=random(rank, inputs), b=random(outputs, rank), scale=2.0)
            for occurrence, site, inputs, outputs in sites(shape)
        )
        for rank in shape.ranks
    )


def make_plan(shape: Shape, zoo: Zoo) -> ExecutionPlan:
    torch.manual_seed(0)
    builder = PlanBuilder(zoo, pages=ROWS * CONTEXT // PAGE_TOKENS, page_tokens=PAGE_TOKENS)
    builder.add(tied_llama(shape), ((), *loras(shape)))
    return builder.build()


def _sides(shape: Shape, rank: int) -> list[Side]:
    return [
        Side(
            site=Site(occurrence=occurrence, name=site),
            terms=(low_rank(_ref((rank, inputs)), _ref((outputs, rank)), 2.0),),
        )
        for occurrence, site, inputs, outputs in sites(shape)
    ]


def _ref(dims: tuple[int, ...]) -> TensorRef:
    return TensorRef(digest="0" * 64, dtype="F32", shape=dims)


def predicted(plan: ExecutionPlan, shape: Shape) -> Layout:
    """As placement counts it."""
    parsed = {digest: parse_structure(text) for digest, text in plan.structures.items()}
    peaks = [activation_bytes(structure, tokens=TOKENS, rows=ROWS, context=CONTEXT) for structure in parsed.values()]
    attending = [peak for peak, structure in zip(peaks, parsed.values(), strict=True) if structure.attention_count]
    return layout(
        tensors=resident(plan),
        sides_bytes=sum(chain_sides_bytes(_sides(shape, rank), dtype="F32") for rank in shape.ranks),
        kv=[
            KvPages(pages=plan.instances[0].kv_pages[index], page_bytes=group.page_bytes, layers=group.layers)
            for index, group in enumerate(plan.kv_groups)
        ],
        activation_bytes=max(peaks) + KERNEL_BYTES * kernel_count(parsed.values()),
        spare_bytes=max(peaks) - max(attending),
        reserve_bytes=0,
    )


def resident(plan: ExecutionPlan) -> set[ResidentTensor]:
    return {
        tensor
        for block in plan.blocks.values()
        for tensor in block_tensors(parse_structure(plan.structures[block.structure]), block.tensors)
    }


needs_packing = pytest.mark.skipif(
    not packs(torch.float32, torch.device("cpu")), reason="this torch reorders no matrices"
)


@needs_packing
def test_the_loader_makes_what_the_layout_counts(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, create=True)
    plan = make_plan(SMALL, zoo)
    model = TorchExecutor(plan, zoo)._model
    assert model is not None
    expected = predicted(plan, SMALL)
    tensors = resident(plan)
    rounding = sum(tensor.nbytes - tensor.ref.nbytes for tensor in tensors)
    assert rounding == 512 - SMALL.size // 2 * 4, "all but the prelude's frequencies fill whole tiles"
    assert model.weights_bytes == expected.weights_bytes - rounding
    assert model.sides_bytes == expected.sides_bytes
    assert sum(pool.nbytes for pool in model.pools) == expected.kv_bytes


@needs_packing
def test_padded_matrices_are_never_larger_than_counted() -> None:
    for rows, columns in ((5, 7), (65, 33), (100, 192), (257, 1001)):
        counted = ResidentTensor(ref=TensorRef(digest="w", dtype="F32", shape=(rows, columns)), form="linear").nbytes
        assert rows * columns * 4 <= PackedWeights([random(rows, columns)], [None]).nbytes <= counted


def test_layouts_of_kernels_are_never_larger_than_counted() -> None:
    form = kernel_weights(torch.bfloat16, torch.device("cpu"))
    if form is None:
        pytest.skip("torch's own kernels are used here")
    for rows, columns in ((5, 7), (65, 33), (100, 192), (257, 1001)):
        counted = ResidentTensor(ref=TensorRef(digest="w", dtype="BF16", shape=(rows, columns)), form="linear").nbytes
        assert rows * columns * 2 <= form([random(rows, columns).bfloat16()], [None]).nbytes <= counted


def test_pages_count_once_they_are_written(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, create=True)
    model = TorchExecutor(make_plan(SMALL, zoo), zoo)._model
    assert model is not None
    (pool,) = model.pools
    assert pool.resident_bytes() == 0
    with torch.inference_mode():
        pool.erase(torch.arange(pool.pages * pool.page_tokens // 2))
        assert pool.resident_bytes() == pytest.approx(pool.nbytes / 2, rel=0.1)
        pool.erase(torch.arange(pool.pages * pool.page_tokens))
    assert pool.resident_bytes() == pool.nbytes


def _loaded_and_served(folder: Path) -> dict[str, Any]:
    """What a fresh process says of its memory."""
    script = Path(__file__).with_name("memory_process.py")
    arguments = [str(folder / "plan.json"), str(folder / "zoo"), *map(str, (TOKENS, ROWS, CONTEXT))]
    finished = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        check=True,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


@needs_packing
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not Path("/proc/self/smaps").exists(), reason="needs glibc")
def test_a_process_takes_what_was_predicted(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo", create=True)
    plan = make_plan(LARGE, zoo)
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    expected = predicted(plan, LARGE)

    def agrees(predicted_bytes: int) -> bool:
        return abs(predicted_bytes - found["rise_bytes"]) <= WITHIN * found["rise_bytes"]

    # A peak is known with the pages of libraries in it, which a busy system may take away before they are subtracted:
    # it is then too high, never too low.
    for _ in range(3):
        found = _loaded_and_served(tmp_path)
        if agrees(expected.used_bytes) or found["rise_bytes"] < expected.used_bytes:
            break
    parts = found["parts"]
    assert agrees(expected.used_bytes), (expected.used_bytes, found["rise_bytes"], parts)
    table_bytes = LARGE.vocab * LARGE.hidden * 4
    assert not agrees(expected.used_bytes - expected.sides_bytes), "forgets the fine-tunes"
    assert not agrees(expected.used_bytes - table_bytes), "counts a tied table once"
    assert not agrees(expected.used_bytes - expected.workspace_bytes), "forgets what steps take"
    loaded = expected.weights_bytes + expected.sides_bytes
    assert abs(found["loaded_bytes"] - loaded) <= WITHIN * loaded
    assert parts["loading_peak_bytes"] <= loaded + 2 * table_bytes, "loads tensor by tensor"
    assert parts["kv_bytes"] == expected.kv_bytes
