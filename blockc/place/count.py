"""Graph and deployment -> a :class:`PlaceProblem` of byte counts. Everything about models ends here.

In: ``UnifiedGraph`` and ``Deployment``. Out: the problem. Invariant: bytes in memory come from `blockc.ir.layout`;
bytes of the baselines are those of the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from blockc.graph import Block, Chain, ModelPath
from blockc.ir import TensorRef
from blockc.ir.layout import activation_bytes, block_tensors, chain_sides_bytes
from blockc.ir.tensor import DTYPE_BYTES
from blockc.place.problem import (
    PlaceChain,
    PlaceDevice,
    PlaceExpect,
    PlaceGroup,
    PlaceProblem,
    PlaceSegment,
)
from blockc.spec.deployment import Base, Deployment, FineTune
from blockc.unify import UnifiedGraph


def place_problem(deployment: Deployment, graph: UnifiedGraph) -> PlaceProblem:
    """Count the bytes."""
    page_tokens = deployment.policy.kv_page_tokens
    return PlaceProblem(
        devices=tuple(
            PlaceDevice(
                address=device.address,
                kind=device.kind,
                memory_bytes=device.memory_bytes,
                reserve_bytes=device.reserve_bytes,
                span=device.span,
            )
            for device in deployment.cluster.devices
        ),
        segments=_segments(deployment, graph),
        groups=tuple(
            PlaceGroup(
                page_bytes=2
                * group.count
                * group.shape.kv_heads
                * group.shape.head_dim
                * page_tokens
                * DTYPE_BYTES[group.shape.dtype],
                kv_heads=group.shape.kv_heads,
                page_tokens=page_tokens,
                layers=group.count,
            )
            for group in graph.groups
        ),
        chains=_chains(deployment, graph),
        max_rows=deployment.policy.max_rows,
        pm_bytes=_pm_bytes(deployment, graph),
        ps_bytes=_ps_bytes(graph),
        ours_bytes=_ours_bytes(graph),
        solver_time_limit_s=deployment.policy.solver_time_limit_s,
        expect=tuple(
            PlaceExpect(memory_below_bytes=expect.memory_below_bytes, span=expect.span)
            for expect in deployment.expect
            if expect.memory_below_bytes is not None
        ),
        cluster_span=deployment.cluster.span,
    )


def _segments(deployment: Deployment, graph: UnifiedGraph) -> tuple[PlaceSegment, ...]:
    policy = deployment.policy
    # A structure is one text for all alike layers: count each once.
    structures = {block.structure_digest: block.structure for block in graph.blocks.values()}
    activations = {
        digest: activation_bytes(structure, tokens=policy.max_batched_tokens, rows=policy.max_rows)
        for digest, structure in structures.items()
    }
    found = []
    for segment in graph.segments:
        path = graph.paths[segment.paths[0]]
        blocks = [*path.blocks[segment.first : segment.first + segment.count], *_prelude(path)]
        found.append(
            PlaceSegment(
                tensors=frozenset(
                    tensor for block in blocks for tensor in block_tensors(block.structure, block.tensors)
                ),
                activation_bytes=max(activations[block.structure_digest] for block in blocks),
            )
        )
    return tuple(found)


def _chains(deployment: Deployment, graph: UnifiedGraph) -> tuple[PlaceChain, ...]:
    items: list[Base | FineTune] = [*deployment.bases.values(), *deployment.fine_tunes.values()]
    spans = {item.name: item.span for item in items}
    models: dict[int, list[str]] = {}
    rates: dict[int, Fraction] = {}
    for app in deployment.apps:
        index = graph.chain_of[app.model]
        if app.traffic.rate_rps is not None:
            rates[index] = rates.get(index, Fraction(0)) + app.traffic.rate_rps
        if app.model not in models.setdefault(index, []):
            models[index].append(app.model)
    return tuple(
        PlaceChain(
            label=models[index][0],
            segments=graph.segments_of[index],
            groups=graph.groups_of[index],
            side_bytes=_sides_bytes(chain),
            max_model_len=chain.path.max_model_len,
            rate_rps=rates.get(index),
            span=spans[models[index][0]],
        )
        for index, chain in enumerate(graph.chains)
    )


def _sides_bytes(chain: Chain) -> int:
    sites = [(side.terms[0].a.shape[1], side.terms[0].b.shape[0]) for side in chain.sides]
    rank = max((side.rank for side in chain.sides), default=0)
    return chain_sides_bytes(sites, rank=rank, dtype=chain.path.dtype)


def _prelude(path: ModelPath) -> list[Block]:
    return [] if path.prelude is None else [path.prelude]


def _tensors(path: ModelPath) -> set[TensorRef]:
    return {tensor for block in (*path.blocks, *_prelude(path)) for tensor in block.tensors.values()}


def _matrices(chain: Chain) -> set[TensorRef]:
    return {tensor for side in chain.sides for term in side.terms for tensor in (term.a, term.b)}


def _bytes(tensors: Iterable[TensorRef]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _pm_bytes(deployment: Deployment, graph: UnifiedGraph) -> int:
    """Every app's model by itself, its adapters beside it."""
    chains = [graph.chains[graph.chain_of[app.model]] for app in deployment.apps]
    return sum(_bytes(_tensors(chain.path)) + _bytes(_matrices(chain)) for chain in chains)


def _ps_bytes(graph: UnifiedGraph) -> int:
    """Every full model by itself, adapters on it shared: what a server with LoRA on shared bases stores."""
    matrices: set[TensorRef] = set().union(*(_matrices(chain) for chain in graph.chains))
    return sum(_bytes(_tensors(path)) for path in graph.paths.values()) + _bytes(matrices)


def _ours_bytes(graph: UnifiedGraph) -> int:
    """Every tensor once."""
    tensors: set[TensorRef] = set().union(*(_tensors(path) for path in graph.paths.values()))
    return _bytes(tensors.union(*(_matrices(chain) for chain in graph.chains)))
