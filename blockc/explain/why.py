"""Why a block of an app's chain is shared or private, with evidence.

In: a plan, an app, an occurrence, and the app's sides if the zoo is at hand. Out: :class:`Why`, plain data. Invariant:
everything said follows from the plan alone; names of models and apps are labels and decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from blockc.explain.difference import Difference, apart_because, block_differences
from blockc.explain.evidence import Integers, Kept, Merged, Weighed, integers_of, kept_of, merged_of, weighed_of
from blockc.explain.names import occurrence_names, parameter_names, structure_of
from blockc.explain.pair import equal_layers
from blockc.ir.tensor import cached_bytes
from blockc.plan import (
    AppEntry,
    ChainEntry,
    CutEntry,
    EvidenceManifest,
    ExecutionPlan,
    PathEntry,
    SideManifest,
    TermEntry,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An end of a segment, with its reason in a sentence. ``block``: the last before the cut; None: the chain ends."""

    block: int | None
    kind: str
    reason: str
    models: tuple[str, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sibling:
    """The nearest block of the model that this one derives from, else of any other.

    ``derives``: the app's model derives from ``model``. No ``differences``: it is the same block.
    """

    model: str
    derives: bool
    block: int
    name: str
    of_tensors: int
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """Apps that use the same block in another segment, and why not in the same one."""

    apps: tuple[str, ...]
    blocks: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFacts:
    """The cache of one attention op.

    ``shared_with``: apps that may read the same pages; ``isolated``: equal ones of other isolation groups, which may
    not.
    """

    layer: int
    group: int
    group_layers: tuple[int, int]
    window: int | None
    dtype: str
    bytes_per_token: int
    domain: str
    shared_with: tuple[str, ...]
    isolated: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """All about one block of one app's chain. ``block``: its occurrence; ``sides`` None: unknown without the zoo.

    ``also_at``: other occurrences of the same block in the chain. ``passes``: other apps that its launches serve.
    """

    app: str
    lineage: tuple[str, ...]
    block: int
    of: int
    name: str
    digest: str
    structure: str
    nbytes: int
    parameters: tuple[str, ...]
    also_at: tuple[int, ...]
    segment: int
    segment_blocks: tuple[int, int]
    passes: tuple[str, ...]
    elsewhere: tuple[Elsewhere, ...]
    sibling: Sibling | None
    begins: Bound | None
    ends: Bound
    side_rank: int
    sides: tuple[str, ...] | None
    has_sides: bool
    merged: Merged | None
    weighed: Weighed | None
    kept: Kept | None
    integers: Integers | None
    kv: tuple[KvFacts, ...]


def explain_why(
    plan: ExecutionPlan,
    app: int,
    occurrence: int,
    *,
    sides: SideManifest | None = None,
    evidence: EvidenceManifest | None = None,
) -> Why:
    """``app`` is an index into the plan's apps; ``sides`` the manifest of its chain, ``evidence`` that of its model."""
    entry = plan.apps[app]
    chain = plan.chains[entry.chain]
    path = plan.paths[chain.path]
    digest = path.blocks[occurrence]
    own = next(i for i in reversed(chain.segments) if plan.segments[i].first <= occurrence)
    segment = plan.segments[own]
    lineage = _lineage(plan, entry.model)
    return Why(
        app=entry.address,
        lineage=lineage,
        block=occurrence,
        of=len(path.blocks),
        name=occurrence_names(plan, path)[occurrence],
        digest=digest,
        structure=plan.blocks[digest].structure,
        nbytes=sum(tensor.nbytes for tensor in set(plan.blocks[digest].tensors.values())),
        parameters=tuple(parameter_names(plan, path, occurrence).values()),
        also_at=tuple(place for place, block in enumerate(path.blocks) if block == digest and place != occurrence),
        segment=own,
        segment_blocks=(segment.first, segment.first + segment.count - 1),
        passes=tuple(other.address for other in plan.apps if other.chain in set(segment.chains) and other is not entry),
        elsewhere=_elsewhere(plan, path, digest, occurrence, frozenset(segment.chains)),
        sibling=_sibling(plan, chain.path, occurrence, lineage),
        begins=_begins(plan, chain.segments, own),
        ends=_bound(plan, own),
        side_rank=chain.side_rank,
        sides=_sides(chain, sides, occurrence),
        has_sides=chain.sides is not None,
        merged=merged_of(plan.models.get(entry.model)),
        weighed=weighed_of(plan.models.get(entry.model)),
        kept=kept_of(plan.models.get(entry.model), evidence, occurrence),
        integers=integers_of(plan, entry.model, plan.blocks[digest]),
        kv=_kv(plan, entry, occurrence),
    )


def _lineage(plan: ExecutionPlan, model: str) -> tuple[str, ...]:
    names = [model]
    while (entry := plan.models.get(names[-1])) is not None and entry.parent is not None:
        names.append(entry.parent)
    return tuple(names)


def _elsewhere(
    plan: ExecutionPlan, path: PathEntry, digest: str, occurrence: int, together: frozenset[int]
) -> tuple[Elsewhere, ...]:
    """One entry per reason and place; apps of one path are alike."""
    found: dict[tuple[tuple[int, ...], str], list[str]] = {}
    places = {name: tuple(i for i, b in enumerate(p.blocks) if b == digest) for name, p in plan.paths.items()}
    for app in plan.apps:
        name = plan.chains[app.chain].path
        if app.chain in together or not places[name]:
            continue
        reason = apart_because(plan, path, plan.paths[name])
        if reason is None:
            reason = f"it is block {places[name][0]} there, block {occurrence} here"
        found.setdefault((places[name], reason), []).append(app.address)
    return tuple(Elsewhere(apps=tuple(apps), blocks=blocks, reason=reason) for (blocks, reason), apps in found.items())


def _sibling(plan: ExecutionPlan, own: str, occurrence: int, lineage: tuple[str, ...]) -> Sibling | None:
    """From the nearest model that this one derives from and that is in the plan, else from all others."""
    for parent, path in _parents(plan, own, lineage):
        place = min(_ranked(plan, own, occurrence, path))[-1]
        return _compared(plan, (own, occurrence), (path, place), parent, derives=True)
    ranked = [
        (*rank[:-1], path, rank[-1])
        for path in plan.paths
        if path != own
        for rank in _ranked(plan, own, occurrence, path)
    ]
    if not ranked:
        return None
    *_, path, place = min(ranked)
    return _compared(plan, (own, occurrence), (path, place), _model_of(plan, path), derives=False)


def _parents(plan: ExecutionPlan, own: str, lineage: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Models that this one derives from and their paths. An adapter has that of its parent, used by an app or not."""
    adapter = True
    for child, parent in pairwise(lineage):
        adapter = adapter and not plan.models[child].is_full
        model = plan.models.get(parent)
        if adapter:
            yield parent, own
        elif model is not None and model.chain is not None:
            yield parent, plan.chains[model.chain].path


def _ranked(plan: ExecutionPlan, own: str, occurrence: int, other: str) -> list[tuple[bool, bool, bool, int, int]]:
    """The blocks of a path, nearest lowest: the same block, one of its structure, at its place, most bytes equal."""
    mine = plan.blocks[plan.paths[own].blocks[occurrence]]
    found = []
    for place, block in enumerate(plan.paths[other].blocks):
        theirs = plan.blocks[block]
        equal = sum(t.nbytes for n, t in mine.tensors.items() if n in theirs.tensors and theirs.tensors[n] == t)
        same = block == plan.paths[own].blocks[occurrence]
        found.append((not same, theirs.structure != mine.structure, place != occurrence, -equal, place))
    return found


def _compared(
    plan: ExecutionPlan, own: tuple[str, int], other: tuple[str, int], model: str, *, derives: bool
) -> Sibling:
    path, their_path = plan.paths[own[0]], plan.paths[other[0]]
    return Sibling(
        model=model,
        derives=derives,
        block=other[1],
        name=occurrence_names(plan, their_path)[other[1]],
        of_tensors=len(plan.blocks[path.blocks[own[1]]].tensors),
        differences=block_differences(plan, (path, own[1]), (their_path, other[1])),
    )


def _model_of(plan: ExecutionPlan, path: str) -> str:
    """A model with this path: a base or full checkpoint rather than an adapter on one."""
    names = [
        (not model.is_full, name)
        for name, model in plan.models.items()
        if model.chain is not None and plan.chains[model.chain].path == path
    ]
    return min(names)[1] if names else path[:12]


def _begins(plan: ExecutionPlan, segments: tuple[int, ...], own: int) -> Bound | None:
    """Why the segment before ends; None at the beginning of the chain."""
    place = segments.index(own)
    return _bound(plan, segments[place - 1]) if place else None


def _bound(plan: ExecutionPlan, index: int) -> Bound:
    segment = plan.segments[index]
    cut: CutEntry = segment.cut
    last = segment.first + segment.count - 1
    models = tuple(_model_of(plan, plan.chains[chain].path) for chain in cut.chains)
    if cut.kind == "end":
        return Bound(block=None, kind="end", reason="the chain ends", models=(), differs=())
    if cut.kind == "elsewhere":
        return Bound(block=last, kind="elsewhere", reason="chains elsewhere part or join here", models=(), differs=())
    if cut.differs == ("end",):
        reason = f"`{models[1]}` ends after block {last}, `{models[0]}` goes on"
    elif cut.kind == "part":
        reason = f"`{models[0]}` and `{models[1]}` part: block {last + 1} differs"
    else:
        reason = f"`{models[1]}` joins `{models[0]}` here: block {last} still differs"
    return Bound(block=last, kind=cut.kind, reason=reason, models=models, differs=cut.differs)


def _sides(chain: ChainEntry, manifest: SideManifest | None, occurrence: int) -> tuple[str, ...] | None:
    if chain.sides is None:
        return ()
    if manifest is None:
        return None
    return tuple(
        f"{side.site}: {' + '.join(map(_term_text, side.terms))}"
        for side in manifest.sides
        if side.occurrence == occurrence
    )


def _term_text(term: TermEntry) -> str:
    return f"rank {term.tensors['a'].shape[0]}" if term.codec == "low_rank" else term.codec


def _kv(plan: ExecutionPlan, app: AppEntry, occurrence: int) -> tuple[KvFacts, ...]:
    chain = plan.chains[app.chain]
    path = plan.paths[chain.path]
    first = sum(structure_of(plan, block).attention_count for block in path.blocks[:occurrence])
    count = structure_of(plan, path.blocks[occurrence]).attention_count
    return tuple(_kv_layer(plan, app, layer) for layer in range(first, first + count))


def _kv_layer(plan: ExecutionPlan, app: AppEntry, layer: int) -> KvFacts:
    chain = plan.chains[app.chain]
    entry = next(kv for kv in chain.kv if plan.kv_groups[kv.group].first_layer <= layer < _end(plan, kv.group))
    shape = plan.paths[chain.path].kv_layers[layer]
    equal = [
        other for other in plan.apps if other is not app and equal_layers(plan, chain, plan.chains[other.chain]) > layer
    ]
    return KvFacts(
        layer=layer,
        group=entry.group,
        group_layers=(plan.kv_groups[entry.group].first_layer, _end(plan, entry.group) - 1),
        window=shape.window,
        dtype=shape.dtype,
        bytes_per_token=2 * shape.kv_heads * cached_bytes(shape.dtype, shape.head_dim),
        domain=entry.domain,
        shared_with=tuple(other.address for other in equal if other.isolation_group == app.isolation_group),
        isolated=tuple(other.address for other in equal if other.isolation_group != app.isolation_group),
    )


def _end(plan: ExecutionPlan, group: int) -> int:
    return plan.kv_groups[group].first_layer + plan.kv_groups[group].layers
