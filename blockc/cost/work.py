"""What a plan's segments and chains have to read and to compute.

In: a plan. Out: bytes and floating-point operations, for each launch, token and row. Counted from the structures:
products of matrices, embeddings, experts and attention; what works on single values is left out, being hidden behind
those. Invariant: a tensor that a segment binds twice is read twice, and one that no op reads is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from blockc.ir import parse_structure
from blockc.ir.infer import Types, value_types
from blockc.ir.layout import READ_AHEAD, padded_rank
from blockc.ir.structure import Arg, Op, Param, Structure, Value, ValueType
from blockc.ir.tensor import DTYPE_BYTES, TensorRef, cached_bytes
from blockc.plan import ChainEntry, ExecutionPlan

_MULTIPLY_ADD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWork:
    """Matrices of experts of which each token reads ``chosen`` of ``experts``. ``nbytes``: of all."""

    nbytes: int
    experts: int
    chosen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentWork:
    """One launch of a segment.

    ``read_bytes``: read by every launch; ``row_read_bytes``: read where logits are wanted; ``token_flops`` of each
    token, ``row_flops`` of each row with logits, ``reduce_bytes`` of hidden states that each token's cell adds up,
    ``reduces`` times a launch.
    """

    blocks: int
    read_bytes: int
    row_read_bytes: int
    token_flops: int
    row_flops: int
    reduces: int
    reduce_bytes: int
    experts: tuple[ExpertWork, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWork:
    """All attention layers of a chain with one window: bytes of cache per token seen, operations per pair of tokens."""

    window: int | None
    token_bytes: int
    pair_flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainWork:
    """What a chain adds to the launches of its segments. ``side_bytes``: of its fine-tune, read by every step."""

    segments: tuple[int, ...]
    attention: tuple[AttentionWork, ...]
    side_bytes: int
    side_token_flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWork:
    """By index into the plan's tables."""

    segments: tuple[SegmentWork, ...]
    chains: tuple[ChainWork, ...]


def plan_work(plan: ExecutionPlan) -> PlanWork:
    """Count a plan's work."""
    most = max((len(path.blocks) for path in plan.paths.values()), default=0)
    return stage_works(plan, [(0, most)])[0]


def stage_works(plan: ExecutionPlan, stages: Sequence[tuple[int, int]]) -> tuple[PlanWork, ...]:
    """The work of parts of all paths: ``(first, count)`` of blocks each. Parts that cover the paths add up to all."""
    structures = {digest: parse_structure(text) for digest, text in plan.structures.items()}
    types = {digest: value_types(structure) for digest, structure in structures.items()}
    blocks = {
        digest: BlockWork.of(block.tensors, structures[block.structure], types[block.structure])
        for digest, block in plan.blocks.items()
    }
    sides = side_bytes_of(plan)
    return tuple(
        PlanWork(
            segments=tuple(
                segment_work(
                    blocks[digest]
                    for digest in plan.paths[entry.path].blocks[
                        max(first, entry.first) : max(0, min(first + count, entry.first + entry.count))
                    ]
                )
                for entry in plan.segments
            ),
            chains=tuple(
                _chain(plan, blocks, chain, sides[index], range(first, first + count))
                for index, chain in enumerate(plan.chains)
            ),
        )
        for first, count in stages
    )


def part_of_sides(nbytes: int, blocks: int, part: range) -> int:
    """Bytes of a fine-tune in a part of its ``blocks``, as if each had as many. Parts add up to all."""
    if not blocks:
        return 0
    return nbytes * min(part.stop, blocks) // blocks - nbytes * min(part.start, blocks) // blocks


def side_bytes_of(plan: ExecutionPlan) -> tuple[int, ...]:
    """Bytes of each chain's sides.

    A plan holds their sum on each device; it is divided by padded rank, by which slots of one bank have equal size.
    Where fine-tunes take turns in slots, the sum is that of the slots and of what is read ahead (`blockc.place.slots`).
    """
    memory = {entry.device: entry for entry in plan.memory}
    found: dict[int, int] = {}
    for instance in plan.instances:
        weights = {
            chain: max(1, padded_rank(plan.chains[chain].side_rank))
            for chain in instance.chains
            if plan.chains[chain].sides is not None
        }
        nbytes = sum(memory[device].sides_bytes for device in instance.devices)
        places = sum(weights.values())
        if instance.side_slots:
            sizes: dict[int, int] = {}
            for chain, weight in weights.items():
                bank = plan.chains[chain].bank
                if bank is not None:
                    sizes[bank] = max(sizes.get(bank, 0), weight)
            places = sum(slots * sizes.get(bank, 0) for bank, slots in instance.side_slots.items())
            places += READ_AHEAD * max(sizes.values(), default=0)
        found |= {chain: nbytes * weight // places for chain, weight in weights.items() if places}
    return tuple(found.get(chain, 0) for chain in range(len(plan.chains)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWork:
    """As `SegmentWork`, of one block; ``pair_flops`` of each of its attentions, in order."""

    read_bytes: int
    row_read_bytes: int
    token_flops: int
    row_flops: int
    state_bytes: int
    experts: tuple[ExpertWork, ...]
    pair_flops: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, TensorRef], structure: Structure, types: Types) -> BlockWork:
        """Count the work of a structure with these tensors; ``types``: of its values."""
        read = {False: 0, True: 0}
        flops = {False: 0, True: 0}
        experts: list[ExpertWork] = []
        for op in structure.ops:
            selected = _selected(op, types)
            if op.target == "blockc.expert_linear":
                found = _experts(op, types, tensors)
                if found is not None:
                    experts.append(found)
                    flops[False] += _expert_flops(op, types, tensors)
                continue
            for name in _params(op.args):
                shape = tensors[name].shape
                if op.target == "blockc.embedding":
                    continue  # reads a row of its table for each token: nothing beside the matrices
                read[selected] += tensors[name].nbytes
                if op.target == "blockc.linear" and op.args[1] == Param(name):
                    flops[selected] += _MULTIPLY_ADD * math.prod(shape)
        return cls(
            read_bytes=read[False],
            row_read_bytes=read[True],
            token_flops=flops[False],
            row_flops=flops[True],
            state_bytes=state_bytes(structure),
            experts=tuple(experts),
            pair_flops=tuple(_pair_flops(op, types) for op in structure.ops if op.target == "blockc.attention"),
        )


def segment_work(blocks: Iterable[BlockWork]) -> SegmentWork:
    """The launch of a run of blocks."""
    own = tuple(blocks)
    return SegmentWork(
        blocks=len(own),
        read_bytes=sum(block.read_bytes for block in own),
        row_read_bytes=sum(block.row_read_bytes for block in own),
        token_flops=sum(block.token_flops for block in own),
        row_flops=sum(block.row_flops for block in own),
        # After attention and after what follows it (Megatron-LM, arXiv 1909.08053, section 3).
        reduces=sum(2 * len(block.pair_flops) for block in own),
        reduce_bytes=sum(2 * len(block.pair_flops) * block.state_bytes for block in own),
        experts=tuple(expert for block in own for expert in block.experts),
    )


class KvLayer(Protocol):
    """The cache of one attention, of a plan's path or a graph's."""

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""

    @property
    def head_dim(self) -> int:
        """Values of a head."""

    @property
    def window(self) -> int | None:
        """Tokens that are seen; None: all."""

    @property
    def dtype(self) -> str:
        """Of the cache, in safetensors' spelling."""


def chain_work(
    segments: tuple[int, ...], blocks: Iterable[BlockWork], kv_layers: Sequence[KvLayer], *, side_bytes: int, dtype: str
) -> ChainWork:
    """What a chain over these blocks adds to its launches."""
    pair_flops = [flops for block in blocks for flops in block.pair_flops]
    totals: dict[int | None, tuple[int, int]] = {}
    for layer, flops in zip(kv_layers, pair_flops, strict=True):
        nbytes = 2 * layer.kv_heads * cached_bytes(layer.dtype, layer.head_dim)
        had_bytes, had_flops = totals.get(layer.window, (0, 0))
        totals[layer.window] = (had_bytes + nbytes, had_flops + flops)
    return ChainWork(
        segments=segments,
        attention=tuple(
            AttentionWork(window=window, token_bytes=nbytes, pair_flops=flops)
            for window, (nbytes, flops) in sorted(totals.items(), key=lambda item: (item[0] is not None, item[0] or 0))
        ),
        side_bytes=side_bytes,
        side_token_flops=_MULTIPLY_ADD * side_bytes // DTYPE_BYTES[dtype],
    )


def _chain(
    plan: ExecutionPlan, blocks: dict[str, BlockWork], chain: ChainEntry, side_bytes: int, part: range
) -> ChainWork:
    path = plan.paths[chain.path]
    every = [blocks[digest] for digest in path.blocks]
    passed = every[part.start : part.stop]
    before = sum(len(block.pair_flops) for block in every[: part.start])
    layers = path.kv_layers[before : before + sum(len(block.pair_flops) for block in passed)]
    own = part_of_sides(side_bytes, len(every), part)
    return chain_work(chain.segments, passed, layers, side_bytes=own, dtype=path.dtype)


def _params(args: Iterable[Arg]) -> Iterator[str]:
    for arg in args:
        if isinstance(arg, Param):
            yield arg.name
        elif isinstance(arg, tuple):
            yield from _params(arg)


def _operand(op: Op, place: int, types: Types) -> ValueType | None:
    arg = op.args[place]
    return types.get(arg.name) if isinstance(arg, Value) else None


def _selected(op: Op, types: Types) -> bool:
    """Whether it works on rows whose logits are wanted, not on all tokens."""
    type_ = types.get(op.result)
    return type_ is not None and "R" in type_.shape


def _experts(op: Op, types: Types, tensors: Mapping[str, TensorRef]) -> ExpertWork | None:
    weight, index = op.args[1], _operand(op, 3, types)
    if not isinstance(weight, Param) or index is None or not isinstance(index.shape[-1], int):
        return None
    nbytes = sum(tensors[name].nbytes for name in _params(op.args))
    return ExpertWork(nbytes=nbytes, experts=tensors[weight.name].shape[0], chosen=index.shape[-1])


def _expert_flops(op: Op, types: Types, tensors: Mapping[str, TensorRef]) -> int:
    found = _experts(op, types, tensors)
    weight = op.args[1]
    if found is None or not isinstance(weight, Param):
        return 0
    return _MULTIPLY_ADD * found.chosen * math.prod(tensors[weight.name].shape[1:])


def _pair_flops(op: Op, types: Types) -> int:
    """Of a query with one key: a product with the key and one with the value, for each head."""
    query, value = _operand(op, 0, types), _operand(op, 2, types)
    if query is None or value is None:
        return 0
    heads, query_dim, value_dim = query.shape[1], query.shape[3], value.shape[3]
    if not (isinstance(heads, int) and isinstance(query_dim, int) and isinstance(value_dim, int)):
        return 0
    return _MULTIPLY_ADD * heads * (query_dim + value_dim)


def state_bytes(structure: Structure) -> int:
    """Of the hidden states of one token that the block is given."""
    for _, type_ in structure.inputs:
        width = type_.shape[-1]
        if "T" in type_.shape and isinstance(width, int) and len(type_.shape) == 3:
            return width * DTYPE_BYTES[type_.dtype]
    return 0
