"""What placement decides about, as plain data made from the graph and the deployment.

In: ``UnifiedGraph`` and ``Deployment``. Out: a ``PlaceProblem`` of byte counts. Everything about models ends here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blockc.diag import Span
from blockc.graph import Chain, ModelPath
from blockc.ir import TensorRef, format_structure
from blockc.ir.layout import sides_bytes, weight_forms, workspace_bytes
from blockc.ir.tensor import DTYPE_BYTES
from blockc.spec.deployment import Deployment
from blockc.unify import UnifiedGraph

Form = tuple[str, TensorRef]  # "packed" or "dense", and the tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceDevice:
    """``usable_bytes``: memory less reserve."""

    address: str
    kind: str
    memory_bytes: int
    reserve_bytes: int
    span: Span

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill."""
        return self.memory_bytes - self.reserve_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceChain:
    """A model version. ``models`` name it in messages; ``weights`` are all forms of all its blocks' tensors."""

    models: tuple[str, ...]
    segments: tuple[int, ...]
    weights: frozenset[Form]
    sides_bytes: int
    rate_rps: float
    max_model_len: int
    groups: tuple[int, ...]
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceGroup:
    """A KV group: bytes of one page, tokens in it."""

    page_bytes: int
    page_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceProblem:
    """All of it. ``pm_bytes``, ``ps_bytes``: weights if every app's model, or every full model, stood alone."""

    devices: tuple[PlaceDevice, ...]
    chains: tuple[PlaceChain, ...]
    groups: tuple[PlaceGroup, ...]
    workspace_bytes: int
    max_rows: int
    pm_bytes: int
    ps_bytes: int
    ours_bytes: int
    memory_below: tuple[tuple[int, Span], ...]
    cluster_span: Span


def place_problem(deployment: Deployment, graph: UnifiedGraph) -> PlaceProblem:
    """Count the bytes."""
    policy = deployment.policy
    forms = {digest: _forms(path) for digest, path in graph.paths.items()}
    spans = {item.name: item.span for item in (*deployment.bases.values(), *deployment.fine_tunes.values())}
    rates: dict[int, float] = {}
    models: dict[int, list[str]] = {}
    for app in deployment.apps:
        index = graph.chain_of[app.model]
        rates[index] = rates.get(index, 0.0) + float(app.traffic.rate_rps or 0)
        if app.model not in models.setdefault(index, []):
            models[index].append(app.model)
    chains = tuple(
        PlaceChain(
            models=tuple(models[index]),
            segments=graph.segments_of[index],
            weights=frozenset(forms[chain.path.digest]),
            sides_bytes=sides_bytes(chain.sides),
            rate_rps=rates[index],
            max_model_len=chain.path.max_model_len,
            groups=graph.groups_of[index],
            span=spans[models[index][0]],
        )
        for index, chain in enumerate(graph.chains)
    )
    structures = {format_structure(block.structure): block.structure for block in graph.blocks.values()}
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
        chains=chains,
        groups=_groups(deployment, graph),
        workspace_bytes=workspace_bytes(
            structures.values(), max_batched_tokens=policy.max_batched_tokens, max_rows=policy.max_rows
        ),
        max_rows=policy.max_rows,
        pm_bytes=_pm_bytes(deployment, graph),
        ps_bytes=_ps_bytes(graph),
        ours_bytes=_ours_bytes(graph),
        memory_below=tuple(
            (expect.memory_below_bytes, expect.span)
            for expect in deployment.expect
            if expect.memory_below_bytes is not None
        ),
        cluster_span=deployment.cluster.span,
    )


def _forms(path: ModelPath) -> set[Form]:
    blocks = [*path.blocks, *([path.prelude] if path.prelude is not None else [])]
    return {form for block in blocks for form in weight_forms(block.structure, dict(block.tensors))}


def _groups(deployment: Deployment, graph: UnifiedGraph) -> tuple[PlaceGroup, ...]:
    page_tokens = deployment.policy.kv_page_tokens
    return tuple(
        PlaceGroup(
            page_bytes=2
            * group.count
            * group.shape.kv_heads
            * group.shape.head_dim
            * page_tokens
            * DTYPE_BYTES[group.shape.dtype],
            page_tokens=page_tokens,
        )
        for group in graph.groups
    )


def _tensors(path: ModelPath) -> set[TensorRef]:
    return {tensor for _, tensor in _forms(path)}


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
    matrices = set().union(*(_matrices(chain) for chain in graph.chains))
    return sum(_bytes(_tensors(path)) for path in graph.paths.values()) + _bytes(matrices)


def _ours_bytes(graph: UnifiedGraph) -> int:
    """Every tensor once."""
    tensors = set().union(*(_tensors(path) for path in graph.paths.values()))
    return _bytes(tensors.union(*(_matrices(chain) for chain in graph.chains)))
