"""What a plan's segments read and compute, counted by hand for a small one."""

from __future__ import annotations

from blockc.cost import AttentionWork, plan_work
from blockc.cost.work import side_bytes_of
from blockc.ir.layout import chain_sides_bytes
from blockc.ir.side import Side, Site, low_rank
from blockc.ir.tensor import TensorRef
from blockc.plan import BlockEntry
from blockc.spec.device_kinds import DEVICE_KINDS
from tests.plan.fleet import HIDDEN, LAYERS, VOCAB, fleet_plan

_LAYER_READ = 2 * (2 * HIDDEN * HIDDEN + HIDDEN)  # q and k, the norm; bfloat16


def test_segments_of_a_small_plan() -> None:
    lower, own, other, head = plan_work(fleet_plan()).segments
    assert lower.blocks == LAYERS  # the embedding and all layers but the last
    assert lower.read_bytes == (LAYERS - 1) * _LAYER_READ
    assert lower.token_flops == (LAYERS - 1) * 2 * 2 * HIDDEN * HIDDEN
    assert (lower.row_read_bytes, lower.row_flops) == (0, 0)
    assert lower.reduces == 2 * (LAYERS - 1)
    assert lower.reduce_bytes == lower.reduces * 2 * HIDDEN
    assert own == other
    assert (head.read_bytes, head.token_flops) == (0, 0)
    assert head.row_read_bytes == 2 * (VOCAB * HIDDEN + HIDDEN)
    assert head.row_flops == 2 * VOCAB * HIDDEN


def test_chains_of_a_small_plan() -> None:
    plan = fleet_plan(adapters=2)
    base, _, adapter, _ = plan_work(plan).chains
    assert base.segments == plan.chains[0].segments
    # 4 layers, 2 heads of 32 for queries, keys and values, in bfloat16
    assert base.attention == (AttentionWork(window=None, token_bytes=LAYERS * 2 * 2 * 32 * 2, pair_flops=LAYERS * 256),)
    assert base.side_bytes == 0
    assert adapter.side_bytes * 2 == plan.memory[0].sides_bytes
    assert adapter.side_token_flops == adapter.side_bytes


def test_sides_are_divided_by_the_rank_of_their_bank() -> None:
    plan = fleet_plan(adapters=2)
    ranks = (0, 0, 8, 24)
    chains = tuple(chain.model_copy(update={"side_rank": rank}) for chain, rank in zip(plan.chains, ranks, strict=True))

    def nbytes(rank: int) -> int:
        a = TensorRef(digest="a", dtype="BF16", shape=(rank, 64))
        b = TensorRef(digest="b", dtype="BF16", shape=(64, rank))
        return chain_sides_bytes([Side(site=Site(occurrence=1, name="q"), terms=(low_rank(a, b, 1.0),))], dtype="BF16")

    memory = tuple(entry.model_copy(update={"sides_bytes": nbytes(8) + nbytes(24)}) for entry in plan.memory)
    found = side_bytes_of(plan.model_copy(update={"chains": chains, "memory": memory}))
    assert found == (0, 0, nbytes(8), nbytes(24))


def test_sides_that_take_turns_are_divided_among_slots_and_what_is_read_ahead() -> None:
    plan = fleet_plan(adapters=6)
    size = 8192 * 8  # of a side, as the fixture counts it
    chains = tuple(chain.model_copy(update={"bank": 0 if chain.sides is not None else None}) for chain in plan.chains)
    instances = tuple(item.model_copy(update={"side_slots": {0: 3}}) for item in plan.instances)
    memory = tuple(item.model_copy(update={"sides_bytes": (3 + 2) * size}) for item in plan.memory)
    found = side_bytes_of(plan.model_copy(update={"chains": chains, "instances": instances, "memory": memory}))
    assert found == (0, 0, *[size] * 6)


def test_experts_are_counted_by_what_tokens_choose() -> None:
    text = """structure v1
input x: BF16[1,T,8]
input pick: I64[1,T,2]
param w: BF16[4,16,8]
%0 = aten.reshape.default(%x, [T, 8])
%1 = aten.reshape.default(%pick, [T, 2])
%2 = blockc.expert_linear(%0, @w, none, %1)
return %2
"""
    plan = fleet_plan()
    first = plan.paths[plan.segments[0].path].blocks[0]
    tensors = {"w": TensorRef(digest="w", dtype="BF16", shape=(4, 16, 8))}
    block = BlockEntry(structure="experts", tensors=tensors, binds={}, prelude=None, contexts=())
    changed = plan.model_copy(
        update={"structures": {**plan.structures, "experts": text}, "blocks": {**plan.blocks, first: block}}
    )
    segment = plan_work(changed).segments[0]
    assert [(item.nbytes, item.experts, item.chosen) for item in segment.experts] == [(4 * 16 * 8 * 2, 4, 2)]
    assert segment.token_flops == plan_work(plan).segments[0].token_flops + 2 * 2 * 16 * 8


def test_every_kind_of_device_has_rates_or_says_that_it_has_none() -> None:
    assert {kind.name for kind in DEVICE_KINDS.values() if kind.bytes_per_s is None} == {"cuda"}
    for kind in DEVICE_KINDS.values():
        assert (kind.bf16_flops_per_s is None) == (kind.bytes_per_s is None)
        if kind.bytes_per_s is not None:
            assert kind.bf16_flops_per_s > kind.bytes_per_s  # all of them compute faster than they read
        assert kind.link_bytes_per_s is None or kind.link_bytes_per_s < kind.bytes_per_s
