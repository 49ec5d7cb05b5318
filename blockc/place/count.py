"""Graph and deployment -> a :class:`PlaceProblem` of byte counts. Everything about models ends here.

In: ``UnifiedGraph`` and ``Deployment``. Out: the problem. Invariant: bytes in memory come from `blockc.ir.layout`;
bytes of the baselines are those of the tensors themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from blockc.cost import catalogue_rates, graph_work
from blockc.cost.profile import Profile
from blockc.graph import Block, Chain, ModelPath
from blockc.ir import Bound, TensorRef
from blockc.ir.banks import Signature, signature
from blockc.ir.layout import KERNEL_BYTES, activation_bytes, block_tensors, chain_sides_bytes, kernel_count
from blockc.ir.recorded import Paged, recorded_bytes
from blockc.ir.tensor import cached_bytes
from blockc.place.before import before_of
from blockc.place.blocks import path_blocks
from blockc.place.problem import (
    PlaceChain,
    PlaceDevice,
    PlaceExpect,
    PlaceGroup,
    PlaceProblem,
    PlaceSegment,
    PlaceSpeed,
)
from blockc.place.rules import chain_loads, place_objective, place_rules
from blockc.place.turns import place_turns
from blockc.plan import ExecutionPlan
from blockc.spec.deployment import Base, Deployment, FineTune
from blockc.spec.device_kinds import DEVICE_KINDS
from blockc.unify import Segment, UnifiedGraph


def place_problem(
    deployment: Deployment,
    graph: UnifiedGraph,
    *,
    originals: Mapping[str, Chain] | None = None,
    profile: Profile | None = None,
    before: ExecutionPlan | None = None,
    bases: frozenset[str] = frozenset(),
) -> PlaceProblem:
    """Count the bytes, and the work if anything is expected.

    ``originals``: models as their files are, for the baselines; None: as they are in the graph. ``profile``: measured
    rates of one kind of device, in place of the catalogue's. ``before``: the plan that this one is to follow.
    ``bases``: digests of the blocks of bases, which are always in memory (`turns.base_blocks`).
    """
    given = originals or {app.model: graph.chains[graph.chain_of[app.model]] for app in deployment.apps}
    models = [given[app.model] for app in deployment.apps]
    policy = deployment.policy
    page_tokens = policy.kv_page_tokens
    chains = _chains(deployment, graph)
    works = any(chain.load for chain in chains)
    activation = _activations(deployment, graph)
    devices = _devices(deployment)
    turns = place_turns(deployment, graph, bases)
    has_to = any(turn.residency is not None for turn in turns.values())
    groups = _groups(graph, page_tokens)
    kept_bytes = _kernel_bytes(deployment, graph) + _recorded_bytes(deployment, graph, groups)
    blocks = path_blocks(graph, activation, kept_bytes, works=works)
    chains = tuple(
        replace(chain, blocks=blocks[own.path.digest]) for chain, own in zip(chains, graph.chains, strict=True)
    )
    return PlaceProblem(
        devices=devices,
        segments=tuple(
            PlaceSegment(
                tensors=frozenset(
                    tensor for block in blocks for tensor in block_tensors(block.structure, block.tensors)
                ),
                activation_bytes=kept_bytes + max(activation(path, block) for block in blocks),
                turn=turns.get(number),
            )
            for number, (path, blocks) in enumerate(map(partial(_segment_blocks, graph), graph.segments))
        ),
        spare_bytes=min((_spare_bytes(path, activation) for path in graph.paths.values()), default=0),
        groups=groups,
        chains=chains,
        max_rows=policy.max_rows,
        max_rows_span=policy.max_rows_span,
        pm_bytes=_pm_bytes(models),
        ps_bytes=_ps_bytes(models),
        ours_bytes=_ours_bytes(graph),
        solver_time_limit_s=deployment.policy.solver_time_limit_s,
        expect=tuple(
            PlaceExpect(memory_below_bytes=expect.memory_below_bytes, span=expect.span)
            for expect in deployment.expect
            if expect.memory_below_bytes is not None
        ),
        cluster_span=deployment.cluster.span,
        sides_limit_bytes=deployment.policy.sides_limit_bytes,
        sides_limit_span=deployment.policy.sides_limit_span,
        blocks_limit_bytes=policy.blocks_limit_bytes,
        blocks_limit_span=policy.blocks_limit_span,
        blocks_reading_bytes=max((turn.reading_bytes for turn in turns.values()), default=0) if has_to else 0,
        host_limit_bytes=policy.host_limit_bytes,
        max_batched_tokens=policy.max_batched_tokens,
        work=graph_work(graph, side_bytes=_own_sides(graph)) if works else None,
        speeds=_speeds(deployment, profile),
        rules=place_rules(deployment, graph),
        headroom=policy.headroom,
        headroom_span=policy.headroom_span,
        gap=policy.gap,
        objective=place_objective(policy),
        sheds=policy.overload == "shed",
        before=None if before is None else before_of(before, [chain.digest for chain in graph.chains], devices),
        move_budget_bytes=policy.move_budget_bytes,
        stages=policy.stages,
        stages_span=policy.stages_span,
        node_bytes_per_s=None if (rate := deployment.cluster.node_bytes_per_s) is None else float(rate),
        node_latency_s=float(deployment.cluster.node_latency_s),
    )


def _devices(deployment: Deployment) -> tuple[PlaceDevice, ...]:
    headroom = deployment.policy.headroom
    return tuple(
        PlaceDevice(
            address=device.address,
            kind=device.kind,
            memory_bytes=device.memory_bytes,
            reserve_bytes=device.reserve_bytes,
            span=device.span,
            price_per_hour=device.price_per_hour,
            headroom_bytes=math.ceil(headroom * (device.memory_bytes - device.reserve_bytes)),
        )
        for device in deployment.cluster.devices
    )


def _speeds(deployment: Deployment, profile: Profile | None) -> dict[str, PlaceSpeed]:
    """Of each kind of which anything is known."""
    found = {}
    for name in sorted({device.kind for device in deployment.cluster.devices}):
        kind = DEVICE_KINDS[name]
        rates = profile.device_rates if profile is not None and profile.device == name else catalogue_rates(kind)
        link = deployment.cluster.link_bytes_per_s or kind.link_bytes_per_s
        if rates is not None:
            found[name] = PlaceSpeed(rates=rates, link_bytes_per_s=None if link is None else float(link))
    return found


def _segment_blocks(graph: UnifiedGraph, segment: Segment) -> tuple[ModelPath, list[Block]]:
    """A segment's path, and its blocks with their prelude."""
    path = graph.paths[segment.paths[0]]
    return path, [*path.blocks[segment.first : segment.first + segment.count], *_prelude(path)]


_Activations = Callable[[ModelPath, Block], int]


def _activations(deployment: Deployment, graph: UnifiedGraph) -> _Activations:
    """Bytes of a block's activations in the largest step."""
    policy = deployment.policy
    structures = {block.structure_digest: block.structure for block in graph.blocks.values()}
    kv_groups = {chain.path.digest: len(groups) for chain, groups in zip(graph.chains, graph.groups_of, strict=True)}

    @cache  # a structure is one text for all alike layers: count each once
    def counted(structure: str, softcap: bool, context: int, groups: int) -> int:
        return activation_bytes(
            structures[structure],
            tokens=policy.max_batched_tokens,
            rows=policy.max_rows,
            context=context,
            kv_groups=groups,
            softcap=softcap,
            parks=policy.prefill_parts > 1,
        )

    def of_block(path: ModelPath, block: Block) -> int:
        softcap = _has_softcap(block)
        return counted(block.structure_digest, softcap, path.max_model_len, kv_groups[path.digest])

    return of_block


def _spare_bytes(path: ModelPath, activation: _Activations) -> int:
    """By how much a path's hungriest block exceeds those that copy pages, for they have attention."""
    every = {block.digest: block for block in path.blocks}.values()
    attending = (activation(path, block) for block in every if block.structure.attention_count)
    return max(activation(path, block) for block in every) - max(attending, default=0)


def _kernel_bytes(deployment: Deployment, graph: UnifiedGraph) -> int:
    """What a CPU keeps of compiled multiplications; the same on every device, for all shapes may meet there."""
    if all(device.kind != "cpu" for device in deployment.cluster.devices):
        return 0
    structures = {block.structure_digest: block.structure for block in graph.blocks.values()}
    return KERNEL_BYTES * kernel_count(structures.values())


def _groups(graph: UnifiedGraph, page_tokens: int) -> tuple[PlaceGroup, ...]:
    return tuple(
        PlaceGroup(
            page_bytes=2
            * group.count
            * group.shape.kv_heads
            * page_tokens
            * cached_bytes(group.shape.dtype, group.shape.head_dim),
            kv_heads=group.shape.kv_heads,
            page_tokens=page_tokens,
            layers=group.count,
        )
        for group in graph.groups
    )


def _recorded_bytes(deployment: Deployment, graph: UnifiedGraph, groups: Sequence[PlaceGroup]) -> int:
    """What CUDA keeps of recorded steps, and a page of each KV group for rows that only fill up a bucket."""
    if all(device.kind == "cpu" for device in deployment.cluster.devices):
        return 0
    structures = {
        block.structure_digest: block.structure for path in graph.paths.values() for block in path.blocks
    }.values()
    positions = max((path.max_model_len for path in graph.paths.values()), default=1)
    paged = [
        Paged(positions=positions, page_tokens=group.page_tokens, window=shaped.shape.window)
        for group, shaped in zip(groups, graph.groups, strict=True)
    ]
    policy = deployment.policy
    return recorded_bytes(
        tuple(structures), max_rows=policy.max_rows, max_tokens=policy.max_batched_tokens, groups=paged,
        segments=len(graph.segments),
    ) + sum(group.page_bytes for group in groups)  # fmt: skip


def _has_softcap(block: Block) -> bool:
    caps = [op.args[5] for op in block.structure.ops if op.target == "blockc.attention"]
    return any((block.binds.get(cap.name) if isinstance(cap, Bound) else cap) is not None for cap in caps)


def _chains(deployment: Deployment, graph: UnifiedGraph) -> tuple[PlaceChain, ...]:
    items: list[Base | FineTune] = [*deployment.bases.values(), *deployment.fine_tunes.values()]
    spans = {item.name: item.span for item in items}
    models: dict[int, list[str]] = {}
    loads = chain_loads(deployment, graph)
    for app in deployment.apps:
        index = graph.chain_of[app.model]
        if app.model not in models.setdefault(index, []):
            models[index].append(app.model)
    banks = chain_banks(deployment, graph)
    slots = _slot_bytes(graph, banks)
    return tuple(
        PlaceChain(
            label=models[index][0],
            segments=graph.segments_of[index],
            groups=graph.groups_of[index],
            side_bytes=slots[index],
            max_model_len=chain.path.max_model_len,
            load=loads.get(index),
            span=spans[models[index][0]],
            bank=banks[index],
        )
        for index, chain in enumerate(graph.chains)
    )


def chain_banks(deployment: Deployment, graph: UnifiedGraph) -> tuple[int | None, ...]:
    """The bank of each chain, where sides are limited: chains on one path, alike in what is done where."""
    if deployment.policy.sides_limit_bytes is None:
        return (None,) * len(graph.chains)
    numbers: dict[tuple[str, Signature], int] = {}
    return tuple(
        numbers.setdefault(
            (chain.path.digest, signature({(side.site.occurrence, side.site.name): side for side in chain.sides})),
            len(numbers),
        )
        if chain.sides
        else None
        for chain in graph.chains
    )


def _own_sides(graph: UnifiedGraph) -> list[int]:
    return [chain_sides_bytes(chain.sides, dtype=chain.path.dtype) for chain in graph.chains]


def _slot_bytes(graph: UnifiedGraph, banks: Sequence[int | None]) -> tuple[int, ...]:
    """Bytes of each chain's sides; in a bank those of its largest, since any may come into any slot."""
    own = _own_sides(graph)
    most: dict[int | None, int] = {}
    for bank, nbytes in zip(banks, own, strict=True):
        most[bank] = max(most.get(bank, 0), nbytes)
    return tuple(nbytes if bank is None else most[bank] for bank, nbytes in zip(banks, own, strict=True))


def _prelude(path: ModelPath) -> list[Block]:
    return [] if path.prelude is None else [path.prelude]


def _tensors(path: ModelPath) -> set[TensorRef]:
    return {tensor for block in (*path.blocks, *_prelude(path)) for tensor in block.tensors.values()}


def _matrices(chain: Chain) -> set[TensorRef]:
    return {tensor for side in chain.sides for term in side.terms for _, tensor in term.tensors}


def _bytes(tensors: Iterable[TensorRef]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _pm_bytes(models: Sequence[Chain]) -> int:
    """Every app's model by itself, its adapters beside it."""
    return sum(_bytes(_tensors(chain.path)) + _bytes(_matrices(chain)) for chain in models)


def _ps_bytes(models: Sequence[Chain]) -> int:
    """Every full model by itself, adapters on it shared: what a server with LoRA on shared bases stores."""
    paths = {chain.path.digest: chain.path for chain in models}
    matrices: set[TensorRef] = set().union(*(_matrices(chain) for chain in models))
    return sum(_bytes(_tensors(path)) for path in paths.values()) + _bytes(matrices)


def _ours_bytes(graph: UnifiedGraph) -> int:
    """Every tensor once."""
    tensors: set[TensorRef] = set().union(*(_tensors(path) for path in graph.paths.values()))
    return _bytes(tensors.union(*(_matrices(chain) for chain in graph.chains)))
