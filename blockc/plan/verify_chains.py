"""Contradictions in what a plan says of chains: their segments, KV groups, apps and models.

In: a plan whose blocks and paths hold together. Out: contradictions in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from blockc.ir.identity import differing_parts
from blockc.ir.infer import value_types
from blockc.ir.structure import Structure
from blockc.ir.tensor import CACHE_DTYPE_BYTES
from blockc.plan.graph_entries import ChainEntry, EmbeddingEntry, SegmentEntry
from blockc.plan.laminar import crosses, find_crossing
from blockc.plan.model import ExecutionPlan


def chain_problems(plan: ExecutionPlan, structures: Mapping[str, Structure]) -> Iterator[str]:
    """All of them. Indices into the plan's tables are checked before they are used."""
    yield from _segments(plan, structures)
    yield from _groups(plan)
    for index, chain in enumerate(plan.chains):
        if chain.path not in plan.paths:
            yield f"chain {index} follows a path that is not there"
            continue
        if chain.vocab_size < 1 or chain.max_model_len < 1:
            yield f"chain {index} takes no tokens"
        if (chain.sides is None) != (not chain.side_kinds) or chain.side_rank < 0:
            yield f"chain {index} has sides of {', '.join(chain.side_kinds) or 'no kind'} and rank {chain.side_rank}"
        if len(chain.virtual_tokens) >= max(1, chain.max_model_len):
            yield f"chain {index} has no room for tokens after its {len(chain.virtual_tokens)} virtual ones"
        if chain.labels and len(chain.labels) != (width := _width(plan, structures, chain)):
            yield f"chain {index} names {len(chain.labels)} classes, its head yields {width}"
        if not chain.vector_width and any(op.target == "blockc.pool" for op in _head(plan, structures, chain).ops):
            yield f"chain {index} makes one vector of a text, and does not say of what"
        if chain.each_token and not chain.labels:
            yield f"chain {index} scores each token, and names no classes"
        if chain.each_token and any(op.target == "blockc.pool" for op in _head(plan, structures, chain).ops):
            yield f"chain {index} scores each token, and its head yields one vector for a text"
        if chain.embedding is not None:
            yield from _embedding(plan, structures, index, chain, chain.embedding)
        yield from _segments_of(plan, index, chain)
        yield from _groups_of(plan, index, chain)
    for index, segment in enumerate(plan.segments):
        yield from _cut(plan, index, segment)
    yield from _crossing(plan)
    yield from _apps(plan)
    yield from _tenants(plan)
    yield from _models(plan)


def _embedding(
    plan: ExecutionPlan, structures: Mapping[str, Structure], index: int, chain: ChainEntry, embedding: EmbeddingEntry
) -> Iterator[str]:
    if chain.labels:
        yield f"chain {index} yields scores and an embedding"
    if embedding.width != (width := _width(plan, structures, chain)):
        yield f"chain {index} yields an embedding of {embedding.width} values, its head one of {width}"
    if any(not 0 < width <= embedding.width for width in embedding.widths or ()):
        yield f"chain {index} may be cut to more than its {embedding.width} values"


def _head(plan: ExecutionPlan, structures: Mapping[str, Structure], chain: ChainEntry) -> Structure:
    return structures[plan.blocks[plan.paths[chain.path].blocks[-1]].structure]


def _width(plan: ExecutionPlan, structures: Mapping[str, Structure], chain: ChainEntry) -> object:
    """How many values the last block yields for a text."""
    structure = _head(plan, structures, chain)
    result = value_types(structure).get(structure.returns[0])
    return None if result is None else result.shape[-1]


def _segments(plan: ExecutionPlan, structures: Mapping[str, Structure]) -> Iterator[str]:
    passing: dict[int, list[int]] = {}
    for number, entry in enumerate(plan.chains):
        for index in entry.segments:
            passing.setdefault(index, []).append(number)
    for index, segment in enumerate(plan.segments):
        path = plan.paths.get(segment.path)
        end = segment.first + segment.count
        if path is None or segment.first < 0 or segment.count < 1 or end > len(path.blocks):
            yield f"segment {index} is no part of a path"
            continue
        before = sum(structures[plan.blocks[b].structure].attention_count for b in path.blocks[: segment.first])
        if segment.first_kv_layer != before:
            yield f"segment {index} begins at KV layer {before}, not {segment.first_kv_layer}"
        if list(segment.chains) != passing.get(index):
            yield f"segment {index} lists other chains than those that pass it"


def _groups(plan: ExecutionPlan) -> Iterator[str]:
    for index, group in enumerate(plan.kv_groups):
        sizes = (group.layers, group.kv_heads, group.head_dim, group.page_tokens)
        if min(sizes) < 1 or group.first_layer < 0 or (group.window is not None and group.window < 1):
            yield f"KV group {index} has no size"
        if group.dtype not in CACHE_DTYPE_BYTES:
            yield f"KV group {index} has an unknown dtype"


def _segments_of(plan: ExecutionPlan, index: int, chain: ChainEntry) -> Iterator[str]:
    """They partition the chain's path, in order."""
    blocks = plan.paths[chain.path].blocks
    place = 0
    for number in chain.segments:
        if not 0 <= number < len(plan.segments):
            yield f"chain {index} passes a segment that is not there"
            return
        segment = plan.segments[number]
        other = plan.paths[segment.path].blocks
        end = segment.first + segment.count
        if segment.first != place or blocks[place:end] != other[segment.first : end]:
            yield f"segment {number} is not what chain {index} passes at block {place}"
            return
        place = end
    if place != len(blocks) or list(chain.segments) != sorted(chain.segments):
        yield f"the segments of chain {index} are not its path"


def _cut(plan: ExecutionPlan, index: int, segment: SegmentEntry) -> Iterator[str]:
    """The segment could not go on: its witnesses are chains, and what is said to differ between them does."""
    cut, end = segment.cut, segment.first + segment.count
    if cut.kind == "end":
        if cut.chains or cut.differs or any(len(_path(plan, chain)) != end for chain in segment.chains):
            yield f"segment {index} ends where its chains go on"
        return
    if cut.kind == "elsewhere":
        if cut.chains or cut.differs:
            yield f"the witnesses of the cut after segment {index} are elsewhere, and named"
        return
    if len(cut.chains) != 2 or not all(0 <= chain < len(plan.chains) for chain in cut.chains):
        yield f"the cut after segment {index} has no witnesses"
        return
    one, other = cut.chains
    if one not in segment.chains or (other in segment.chains) != (cut.kind == "part"):
        yield f"the witnesses of the cut after segment {index} do not pass it"
        return
    place = end if cut.kind == "part" else end - 1
    blocks = [_path(plan, chain)[place : place + 1] for chain in cut.chains]
    if not blocks[0]:
        yield f"the first witness of the cut after segment {index} ends"
    elif not blocks[1]:
        if cut.differs != ("end",):
            yield f"the second witness of the cut after segment {index} ends"
    elif cut.differs != differing_parts(*(plan.blocks[block].parts for (block,) in blocks)) or not cut.differs:
        yield f"the witnesses of the cut after segment {index} differ in something else"
    elif cut.kind == "join" and _following(plan, one, end) != _following(plan, other, end):
        yield f"the witnesses of the cut after segment {index} do not meet"


def _path(plan: ExecutionPlan, chain: int) -> tuple[str, ...]:
    return plan.paths[plan.chains[chain].path].blocks


def _following(plan: ExecutionPlan, chain: int, place: int) -> int | None:
    """The segment of a chain that begins at an occurrence."""
    return next((index for index in plan.chains[chain].segments if plan.segments[index].first == place), None)


def _crossing(plan: ExecutionPlan) -> Iterator[str]:
    chains = [segment.chains for segment in plan.segments]
    if plan.crossing is None:
        if find_crossing(chains) is not None:
            yield "sharing is said to be laminar, and two segments cross"
        return
    if not all(0 <= index < len(chains) for index in plan.crossing) or not crosses(*(chains[i] for i in plan.crossing)):
        yield "two segments are said to cross and do not"


def _groups_of(plan: ExecutionPlan, index: int, chain: ChainEntry) -> Iterator[str]:
    """They cover the chain's layers, in order."""
    layers = plan.paths[chain.path].kv_layers
    place = 0
    for entry in chain.kv:
        if not 0 <= entry.group < len(plan.kv_groups):
            yield f"chain {index} uses a KV group that is not there"
            return
        group = plan.kv_groups[entry.group]
        own = layers[place : place + group.layers]
        shape = (group.kv_heads, group.head_dim, group.window, group.dtype)
        alike = all((kv.kv_heads, kv.head_dim, kv.window, kv.dtype) == shape for kv in own)
        if group.first_layer != place or len(own) != group.layers or not alike:
            yield f"KV group {entry.group} does not fit chain {index} at layer {place}"
            return
        place += group.layers
    if place != len(layers):
        yield f"the KV groups of chain {index} do not cover its layers"
    if len({plan.kv_groups[entry.group].page_tokens for entry in chain.kv}) > 1:
        yield f"the KV groups of chain {index} differ in the size of their pages"


def _apps(plan: ExecutionPlan) -> Iterator[str]:
    weights: dict[str, float] = {}
    for app in plan.apps:
        if not 0 <= app.chain < len(plan.chains):
            yield f"app {app.address} names a chain that is not there"
        elif app.model in plan.models and plan.models[app.model].chain != app.chain:
            yield f"app {app.address} and its model {app.model} name different chains"
        if not (math.isfinite(app.weight) and app.weight > 0):
            yield f"app {app.address} has no weight"
        if weights.setdefault(app.tenant, app.weight) != app.weight:
            yield f"apps of tenant {app.tenant} differ in weight"
    if not all(0 <= app.served <= 1 for app in plan.apps):
        yield "an app has a place for less than nothing of its load, or for more than all"
    if len({app.address for app in plan.apps}) != len(plan.apps):
        yield "two apps have one address"


def _tenants(plan: ExecutionPlan) -> Iterator[str]:
    owners: dict[str, str] = {}
    for entry in plan.tenants:
        for name in entry.key_secrets:
            if not (name.isascii() and name.isidentifier()):
                yield f"a key of tenant {entry.tenant} has no name of a secret"
            if owners.setdefault(name, entry.tenant) != entry.tenant:
                yield f"tenants {owners[name]} and {entry.tenant} have one secret"


def _models(plan: ExecutionPlan) -> Iterator[str]:
    for name, model in plan.models.items():
        if model.chain is not None and not 0 <= model.chain < len(plan.chains):
            yield f"model {name} names a chain that is not there"
        seen = {name}
        parent = model.parent
        while parent is not None:
            if parent not in plan.models or parent in seen:
                yield f"model {name} has no base"
                return
            seen.add(parent)
            parent = plan.models[parent].parent
