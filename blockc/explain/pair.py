"""What two apps have in common: weights, launches, cached keys and values, and what that buys.

In: a plan and two of its apps. Out: :class:`Pair`, plain data. Computed for the pair that is asked for: a plan of a
thousand chains has half a million pairs and lists none.

Layers are counted by the plan's KV groups. Inside an isolation group that is exact, because groups are cut wherever two
chains of one isolation group diverge; across groups, where nothing may be shared anyway, it is a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from blockc.explain.difference import apart_because
from blockc.explain.names import structure_of
from blockc.ir import Param, Structure
from blockc.ir.infer import value_types
from blockc.ir.tensor import DTYPE_BYTES, TensorRef, cached_bytes
from blockc.plan import AppEntry, ChainEntry, ExecutionPlan, PathEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Up to which block both compute the same, and the two ways to make use of that for a prefix that one has seen.

    Pages of equal layers save memory alone; a second app skips the blocks below ``block`` only if the hidden states
    there are kept too. ``keep``: bytes per token of those. ``recompute``: floating-point operations per token of the
    linears below, which is what keeping saves; adapters and attention, which grows with the context, come on top. None:
    not known.
    """

    block: int
    keep_bytes_per_token: int
    recompute_flops_per_token: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairKv:
    """Leading layers whose K and V are proven equal for equal tokens.

    ``allowed``: one isolation group, so that pages may be shared. ``saved_bytes_per_token``: stored once instead of
    twice. ``skips_prefill``: equal at every layer, so that whatever one has computed the other need not. ``apart``: why
    their caches cannot share pages whatever is in them; ``layers`` is 0 then.
    """

    layers: int
    of: int
    exact: bool
    allowed: bool
    saved_bytes_per_token: int
    skips_prefill: bool
    boundary: Boundary | None
    apart: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairWeights:
    """Blocks and tensors in common. ``blocks`` counts positions at which both have the same block."""

    blocks: int
    of: tuple[int, int]
    shared_bytes: int
    own_bytes: tuple[int, int]
    segments: tuple[int, ...]
    launched_together: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two apps. ``same_chain``: they are one model version under two names."""

    apps: tuple[str, str]
    models: tuple[str, str]
    same_chain: bool
    weights: PairWeights
    kv: PairKv


def explain_pair(plan: ExecutionPlan, one: int, other: int) -> Pair:
    """``one`` and ``other`` are indices into the plan's apps."""
    apps = plan.apps[one], plan.apps[other]
    return Pair(
        apps=(apps[0].address, apps[1].address),
        models=(apps[0].model, apps[1].model),
        same_chain=apps[0].chain == apps[1].chain,
        weights=_weights(plan, apps),
        kv=_kv(plan, apps),
    )


def equal_layers(plan: ExecutionPlan, one: ChainEntry, other: ChainEntry) -> int:
    """Leading layers of two chains that are in the same KV groups under the same domains."""
    layers = 0
    for mine, theirs in zip(one.kv, other.kv, strict=False):
        if mine != theirs:
            break
        layers += plan.kv_groups[mine.group].layers
    return layers


def _weights(plan: ExecutionPlan, apps: tuple[AppEntry, AppEntry]) -> PairWeights:
    chains = [plan.chains[app.chain] for app in apps]
    paths = [plan.paths[chain.path] for chain in chains]
    tensors = [_tensors(plan, path) for path in paths]
    together = tuple(index for index in chains[0].segments if index in chains[1].segments)
    return PairWeights(
        blocks=sum(mine == theirs for mine, theirs in zip(paths[0].blocks, paths[1].blocks, strict=False)),
        of=(len(paths[0].blocks), len(paths[1].blocks)),
        shared_bytes=_bytes(tensors[0] & tensors[1]),
        own_bytes=(_bytes(tensors[0] - tensors[1]), _bytes(tensors[1] - tensors[0])),
        segments=together,
        launched_together=sum(plan.segments[index].count for index in together),
    )


def _kv(plan: ExecutionPlan, apps: tuple[AppEntry, AppEntry]) -> PairKv:
    one, other = (plan.chains[app.chain] for app in apps)
    path, their_path = plan.paths[one.path], plan.paths[other.path]
    layers, depth = equal_layers(plan, one, other), len(path.kv_layers)
    allowed = apps[0].isolation_group == apps[1].isolation_group
    whole = 0 < layers == depth
    saved = sum(2 * layer.kv_heads * cached_bytes(layer.dtype, layer.head_dim) for layer in path.kv_layers[:layers])
    return PairKv(
        layers=layers,
        of=depth,
        exact=allowed,
        allowed=allowed,
        saved_bytes_per_token=saved if allowed else 0,
        skips_prefill=whole and allowed,
        boundary=_boundary(plan, path, layers) if layers and not whole else None,
        apart=apart_because(plan, path, their_path),
    )


def _boundary(plan: ExecutionPlan, path: PathEntry, layers: int) -> Boundary:
    """Before the block of the last equal layer: equal K and V need equal inputs, and nothing is known of what follows.

    The price of keeping is one hidden state; what it saves are the blocks below.
    """
    structures = {block: structure_of(plan, block) for block in set(path.blocks)}
    seen, place = 0, 0
    while seen + structures[path.blocks[place]].attention_count < layers:
        seen += structures[path.blocks[place]].attention_count
        place += 1
    (_, hidden), *_ = structures[path.blocks[place]].inputs
    flops = [linear_flops(structures[block]) for block in path.blocks[:place]]
    known = [count for count in flops if count is not None]
    return Boundary(
        block=place,
        keep_bytes_per_token=prod(size for size in hidden.shape if isinstance(size, int)) * DTYPE_BYTES[hidden.dtype],
        recompute_flops_per_token=sum(known) if len(known) == len(flops) else None,
    )


def linear_flops(structure: Structure) -> int | None:
    """Floating-point operations per token of a block's linears: two per weight, of the chosen experts only.

    None: how many experts a token chooses does not follow from the structure.
    """
    weights = {name: [size for size in kind.shape if isinstance(size, int)] for name, kind in structure.params}
    total = 0
    for op in structure.ops:
        if op.target == "blockc.linear" and isinstance(op.args[1], Param):
            total += 2 * prod(weights[op.args[1].name])
        elif op.target == "blockc.expert_linear" and isinstance(op.args[1], Param):
            result = value_types(structure)[op.result]  # [T, choices, out]
            if result is None or not isinstance(result.shape[-2], int):
                return None
            total += 2 * result.shape[-2] * prod(weights[op.args[1].name][-2:])
    return total


def _tensors(plan: ExecutionPlan, path: PathEntry) -> set[TensorRef]:
    blocks = set(path.blocks)
    blocks |= {prelude for block in blocks if (prelude := plan.blocks[block].prelude) is not None}
    return {tensor for block in blocks for tensor in plan.blocks[block].tensors.values()}


def _bytes(tensors: set[TensorRef]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
