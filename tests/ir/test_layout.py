"""Sizes: against hand-counted bytes, and never smaller than what torch makes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc.ir import Side, Site, TensorRef, Term, low_rank, parse_structure, term
from blockc.ir.infer import value_types
from blockc.ir.layout import (
    KERNELS_PER_SHAPE,
    KvPages,
    ResidentTensor,
    activation_bytes,
    block_tensors,
    chain_sides_bytes,
    gather_bytes,
    kernel_count,
    layout,
    padded_rank,
)
from tests.runtime.executor import structures as made

STRUCTURES = {
    "prelude": made.llama_prelude(32, "BF16"),
    "embed": made.llama_embed(512, 192, "BF16"),
    "attention": made.llama_attention(192, 6, 3, 32, 1e-5, "BF16"),
    "mlp": made.llama_mlp(192, 512, 1e-5, "BF16"),
    "head": made.llama_head(512, 192, 1e-5, "BF16"),
    "gpt2": made.gpt2_layer(192, 6, 1e-5, "F32"),
    "gpt2 head": made.gpt2_head(512, 192, 1e-5, "F32"),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_all_types_follow(name: str) -> None:
    structure = parse_structure(STRUCTURES[name])
    types = value_types(structure)
    assert None not in types.values()
    expected = {
        "prelude": "BF16[1,1,T,64]", "head": "BF16[1,R,512]", "gpt2": "F32[1,T,192]", "gpt2 head": "F32[1,R,512]",
    }  # fmt: skip
    assert str(types[structure.returns[0]]) == expected.get(name, "BF16[1,T,192]")


@pytest.mark.parametrize(
    ("op", "type_"),
    [
        ("aten.reshape.default(%x, [1, -1, 4, 16])", None),  # mixes a size with the token count
        ("aten.reshape.default(%x, [1, T, -1, 16])", "F32[1,T,4,16]"),
        ("aten.expand.default(%x, [3, -1, -1])", "F32[3,T,64]"),
        ("aten.slice.Tensor(%x, -1, 0, 8)", "F32[1,T,8]"),
        ("aten.slice.Tensor(%x, 2, -8, 9223372036854775807)", "F32[1,T,8]"),
        ("aten.slice.Tensor(%x, 1, 0, 4)", None),
        ("aten.slice.Tensor(%x, 9, 0, 4)", None),
        ("aten.transpose.int(%x, 7, 2)", None),
        ("aten.unsqueeze.default(%x, -1)", "F32[1,T,64,1]"),
        ("aten.cat.default([%x, %x, %y], 2)", "F32[1,T,136]"),
        ("aten.cat.default([%x, %x], 1)", None),
        ("aten.mul.Tensor(%x, %z)", "F32[1,T,64]"),
        ("aten.mul.Tensor(%x, %y)", None),
        ("aten.mul.Tensor(%z, %x)", "F32[1,T,64]"),
        ("aten.add.Tensor(%x, 1)", "F32[1,T,64]"),
        ("aten.matmul.default(%x, %w)", "F32[1,T,5]"),
        ("aten.to.dtype(%x, #BF16)", "BF16[1,T,64]"),
    ],
)
def test_types_of_ops(op: str, type_: str | None) -> None:
    text = (
        "structure v1\ninput x: F32[1,T,64]\ninput y: F32[1,T,8]\ninput z: BF16[1]\ninput w: F32[64,5]\n"
        f"%0 = {op}\nreturn %0\n"
    )
    found = value_types(parse_structure(text))["0"]
    assert (None if found is None else str(found)) == type_


def ref(name: str, shape: tuple[int, ...], dtype: str = "BF16") -> TensorRef:
    return TensorRef(digest=name, dtype=dtype, shape=shape)


def test_a_tied_embedding_is_resident_twice() -> None:
    embed, head = parse_structure(STRUCTURES["embed"]), parse_structure(STRUCTURES["head"])
    table = ref("table", (512, 192))
    tensors = block_tensors(embed, {"embed_tokens.weight": table})
    tensors |= block_tensors(head, {"lm_head": table, "norm": ref("norm", (192,))})
    assert sorted(tensor.form for tensor in tensors if tensor.ref == table) == ["linear", "plain"]
    total = layout(tensors=[*tensors, *tensors], sides_bytes=0, kv=(), activation_bytes=0, reserve_bytes=0)
    assert total.weights_bytes == 2 * 512 * 192 * 2 + 512


def test_matrices_are_padded_to_tiles() -> None:
    assert ResidentTensor(ref=ref("w", (100, 192)), form="linear").nbytes == 128 * 192 * 2
    assert ResidentTensor(ref=ref("w", (100, 192)), form="plain").nbytes == 38_400


@given(st.integers(0, 4096))
def test_ranks_are_padded_as_banks_are(rank: int) -> None:
    padded = padded_rank(rank)
    assert padded >= rank
    assert padded == 0 if rank == 0 else padded < max(9, 2 * rank)


def test_sides() -> None:
    sides = [
        Side(site=Site(occurrence=0, name="q"), terms=(_low_rank(9, 192, 192),)),
        Side(site=Site(occurrence=0, name="up"), terms=(_low_rank(3, 192, 512), _low_rank(2, 192, 512))),
        Side(site=Site(occurrence=0, name="norm"), terms=(term("value", {"value": ref("n", (192,))}),)),
    ]
    assert chain_sides_bytes(sides, dtype="BF16") == 16 * 2 * (384 + 704) + 512
    assert chain_sides_bytes([], dtype="BF16") == 0


def _low_rank(rank: int, inputs: int, outputs: int) -> Term:
    return low_rank(ref("a", (rank, inputs)), ref("b", (outputs, rank)), 1.0)


def test_layout_adds_up() -> None:
    pools = [KvPages(pages=10, page_bytes=4096, layers=4), KvPages(pages=3, page_bytes=1000, layers=3)]
    whole = layout(tensors=(), sides_bytes=5, kv=pools, activation_bytes=7, reserve_bytes=11)
    assert whole.kv_bytes == 43_960
    assert whole.workspace_bytes == 7 + 10 * 1024, "one layer of the largest group is copied at a time"
    assert whole.used_bytes == 43_960 + 10_247 + 5 + 11


@pytest.mark.parametrize("name", STRUCTURES)
def test_activations_grow_with_tokens(name: str) -> None:
    structure = parse_structure(STRUCTURES[name])
    few, many = (activation_bytes(structure, tokens=tokens, rows=8) for tokens in (64, 2048))
    assert 0 < few < many


def test_activations_by_hand() -> None:
    """The MLP at its peak: input, gate and up in one piece, gate's activation, and their product."""
    structure = parse_structure(made.llama_mlp(192, 512, 1e-5, "BF16"))
    tokens = 1024
    kept = tokens * 2 * 192  # what the segment was given
    peak = tokens * 2 * (192 + 4 * 512)
    assert activation_bytes(structure, tokens=tokens, rows=1) == peak + kept


def test_contexts_cost_a_mask_for_each_group() -> None:
    structure = parse_structure(STRUCTURES["mlp"])
    none = activation_bytes(structure, tokens=64, rows=1)
    one, two = (activation_bytes(structure, tokens=64, rows=1, context=512, kv_groups=count) for count in (1, 2))
    assert (one - none, two - none) == (64 * 512 * 3, 2 * 64 * 512 * 3)


def test_a_softcap_costs_the_scores_of_all_heads() -> None:
    structure = parse_structure(STRUCTURES["attention"])
    plain, capped = (
        activation_bytes(structure, tokens=64, rows=1, context=4096, softcap=softcap) for softcap in (False, True)
    )
    assert capped - plain >= 2 * 6 * 64 * 4096 * 4


def test_a_kernel_for_each_shape_of_joined_matrices() -> None:
    structures = [parse_structure(STRUCTURES[name]) for name in ("embed", "attention", "attention", "mlp", "head")]
    assert kernel_count(structures) == 5 * KERNELS_PER_SHAPE, "q with k and v, o, gate with up, down, head"


def test_copied_pages_take_the_place_of_larger_activations() -> None:
    pools = [KvPages(pages=10, page_bytes=4096, layers=4)]
    assert [gather_bytes(pools, spare_bytes=spare) for spare in (0, 10_000, 20_000)] == [10_240, 240, 0]


def test_logits_count_in_float32() -> None:
    structure = parse_structure(made.llama_head(512, 192, 1e-5, "BF16"))
    one, two = (activation_bytes(structure, tokens=1, rows=rows) for rows in (64, 128))
    assert two - one >= 3 * 64 * 512 * 4
    assert math.isclose(two / one, 2, rel_tol=0.1)


@pytest.mark.parametrize("rank", [1, 7, 8, 9, 16, 33, 64, 100])
def test_the_runtime_pads_ranks_alike(rank: int) -> None:
    from blockc.ir.banks import signature

    side = Side(site=Site(occurrence=0, name="q"), terms=(_low_rank(rank, 4, 4),))
    assert signature({(0, "q"): side})[0] == padded_rank(rank)
