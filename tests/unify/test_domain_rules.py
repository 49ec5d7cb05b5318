"""What counts for a layer's keys and values and what does not, rule by rule, without weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockc.graph import Block, Chain
from blockc.ir import Side, Site, TensorRef, Term, effective_sides, low_rank, parse_structure, tensor_digest
from blockc.unify import kv_domains, unify
from tests.support.synthetic import ATTENTION, LINEARS, base_path, chain, lora, path, tensor

LAYERS = 4


def _first_difference(one: Chain, other: Chain) -> int:
    """The first layer whose domains differ; they differ ever after."""
    differs = [mine != theirs for mine, theirs in zip(kv_domains(one), kv_domains(other), strict=True)]
    first = differs.index(True) if any(differs) else LAYERS
    assert all(differs[first:])
    return first


BASE = chain(base_path(0, LAYERS))


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ("model.embed_tokens.weight", 0),
        ("model.layers.1.input_layernorm.weight", 1),
        ("model.layers.1.self_attn.k_proj.weight", 1),
        ("model.layers.1.self_attn.v_proj.weight", 1),
        ("model.layers.1.self_attn.q_proj.weight", 2),
        ("model.layers.1.self_attn.o_proj.weight", 2),
        ("model.layers.1.mlp.up_proj.weight", 2),
        ("model.layers.3.mlp.down_proj.weight", LAYERS),
        ("lm_head.weight", LAYERS),
    ],
)
def test_a_tensor(changed: str, first: int) -> None:
    tuned = chain(path(lambda name: "tuned" if name == changed else "base0", layers=LAYERS))
    assert _first_difference(BASE, tuned) == first


@pytest.mark.parametrize("site", LINEARS)
def test_a_side(site: str) -> None:
    tuned = chain(BASE.path, lora("tuned", layers=[2], targets=[site]))
    assert _first_difference(BASE, tuned) == (2 if site in ("self_attn.k_proj", "self_attn.v_proj") else 3)


def test_a_window_counts_from_the_next_layer_on() -> None:
    """And so does whatever else an attention op binds; its keys and values are those that go in."""
    assert _first_difference(BASE, _bound("window0", 64)) == 2
    assert _first_difference(BASE, _bound("scale0", 0.5)) == 2
    assert _first_difference(BASE, _bound("softcap0", 30.0)) == 2


def _bound(name: str, value: float) -> Chain:
    blocks = list(BASE.path.blocks)
    blocks[3] = replace(blocks[3], binds={**blocks[3].binds, name: value})
    return replace(BASE, path=replace(BASE.path, blocks=tuple(blocks)))


def test_a_cache_in_another_dtype_counts_in_its_layer_and_above() -> None:
    layers = list(BASE.path.kv_layers)
    layers[1] = replace(layers[1], dtype="F32")
    assert _first_difference(BASE, replace(BASE, path=replace(BASE.path, kv_layers=tuple(layers)))) == 1


def test_the_dtype_of_a_path_counts() -> None:
    assert _first_difference(BASE, replace(BASE, path=replace(BASE.path, dtype="F16"))) == 0


TWO_TABLES = parse_structure(
    "structure v1\ninput positions: I64[1,T]\nparam near: F32[64]\nparam far: F32[64]\n"
    "%0 = aten.unsqueeze.default(%positions, 2)\n%1 = aten.to.dtype(%0, #F32)\n"
    + "".join(
        f"%{index}a = aten.mul.Tensor(%1, @{name})\n%{index}b = aten.cat.default([%{index}a, %{index}a], 2)\n"
        f"%{index}c = aten.cos.default(%{index}b)\n%{index}d = aten.to.dtype(%{index}c, #BF16)\n"
        f"%{index}e = aten.unsqueeze.default(%{index}d, 1)\n"
        for index, name in ((2, "near"), (3, "far"))
    )
    + "return %2e, %3e\n"
)


def _two_tables(far: str, reads: dict[int, int]) -> Chain:
    """Layers read one of two rotary tables, as Gemma 3's local and global layers do. ``reads``: layer -> table."""
    tensors = {"near": tensor("near", (64,), "F32"), "far": tensor(far, (64,), "F32")}
    prelude = Block(structure=TWO_TABLES, binds={}, tensors=tensors, prelude=None, contexts=())
    blocks = [
        replace(block, prelude=prelude.digest, contexts=(reads.get(place // 2, 0),)) if block.contexts else block
        for place, block in enumerate(BASE.path.blocks)
    ]
    return replace(BASE, path=replace(BASE.path, prelude=prelude, blocks=tuple(blocks)))


def test_of_the_prelude_only_what_is_read_counts() -> None:
    reads = {2: 1}
    assert _first_difference(_two_tables("far", reads), _two_tables("other", reads)) == 2
    assert _first_difference(_two_tables("far", {}), _two_tables("other", {})) == LAYERS
    assert _first_difference(_two_tables("far", {}), _two_tables("far", reads)) == 2


def test_rope_counts_wherever_it_is_read() -> None:
    assert _first_difference(BASE, chain(path(lambda name: "base0", layers=LAYERS, rope="other"))) == 0


def test_an_op_never_heard_of_counts_with_all_its_arguments() -> None:
    """The domain of a key computed by one says so, whatever the op means; a side at it is not left out."""
    ops = list(ATTENTION.ops)
    place = next(index for index, op in enumerate(ops) if op.result == "11")  # the rotated keys

    def found(argument: object, sides: tuple[Side, ...] = ()) -> tuple[str, ...]:
        ops[place] = replace(ops[place], target="blockc.unheard_of", args=(*ops[place].args[:2], argument))
        blocks = list(BASE.path.blocks)
        blocks[1] = replace(blocks[1], structure=replace(ATTENTION, ops=tuple(ops)))
        return kv_domains(
            Chain(path=replace(BASE.path, blocks=tuple(blocks)), sides=sides, assets={}, stop_token_ids=())
        )

    side = replace(lora("tuned", layers=[0], targets=["mlp.up_proj"])[0], site=Site(occurrence=1, name="new"))
    assert found(1)[0] != found(2)[0]
    assert found("new")[0] != found("new", (side,))[0]
    nowhere = replace(side, site=Site(occurrence=1, name="nowhere"))
    assert found("new")[0] != found("new", (nowhere,))[0], "a side at a place that is not found counts"


def _zeros(shape: tuple[int, ...]) -> TensorRef:
    data = bytes(2 * shape[0] * shape[1])
    return TensorRef(digest=tensor_digest("BF16", shape, data), dtype="BF16", shape=shape)


def test_terms_that_add_nothing_are_left_out() -> None:
    (side,) = lora("tuned", layers=[1], targets=["self_attn.k_proj"])
    (term,) = side.terms

    def with_terms(*terms: Term) -> tuple[Side, ...]:
        return effective_sides([replace(side, terms=terms)])

    a, b = term["a"], term["b"]
    nothing = [low_rank(a, b, 0.0), low_rank(a, b, -0.0), low_rank(a, _zeros(b.shape), 2.0),
               low_rank(_zeros(a.shape), b, 2.0)]  # fmt: skip
    for term_without_effect in nothing:
        assert with_terms(term_without_effect) == ()
        assert with_terms(term, term_without_effect) == (side,)
    assert with_terms(term) == (side,)
    almost = low_rank(a, replace(_zeros(b.shape), shape=(b.shape[0] // 2, b.shape[1] * 2)), 2.0)
    assert len(with_terms(almost)) == 1, "the digest of zeros of another shape proves nothing"


def test_a_block_that_occurs_twice_has_domains_of_its_own_each_time() -> None:
    def twice(name: str) -> str:
        return "base0"

    blocks = path(twice, layers=LAYERS).blocks
    again = replace(BASE.path, blocks=(*blocks[:3], *blocks[1:3], *blocks[5:]))
    domains = kv_domains(chain(again))
    assert again.blocks[1].digest == again.blocks[3].digest
    assert len(set(domains)) == LAYERS
    graph = unify({"one": BASE, "twice": chain(again)}, together=[frozenset({"one", "twice"})])
    assert [(group.first, group.count) for group in graph.groups] == [(0, 1), (1, 3)]


def test_no_page_of_a_model_that_sees_later_tokens_is_ever_shared() -> None:
    """Attention in both directions has no cache; a layer with one above it would read from a future."""
    ops = list(ATTENTION.ops)
    place = next(index for index, op in enumerate(ops) if op.target == "blockc.attention")
    ops[place] = replace(ops[place], target="blockc.encode")
    encoder = replace(BASE.path.blocks[1], structure=replace(ATTENTION, ops=tuple(ops)))
    blocks = tuple(encoder if block.structure is ATTENTION else block for block in BASE.path.blocks)
    whole = replace(BASE.path, blocks=blocks, kv_layers=(), first_kv_layer=(0,) * len(blocks))
    assert kv_domains(chain(whole)) == ()
    mixed = replace(
        BASE.path, blocks=(BASE.path.blocks[0], encoder, *BASE.path.blocks[2:]), kv_layers=BASE.path.kv_layers[1:]
    )
    with pytest.raises(AssertionError, match="later tokens"):
        kv_domains(chain(mixed))
