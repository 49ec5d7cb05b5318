"""Which segments' weights are not always in memory, and the room that the others leave them on a device.

In: a deployment and its graph, then the chains on a device. Out: what each segment would bring, then which of them are
there for good, which take turns, and in how much room. Invariants: what a base has stays; whatever takes turns, the
segments of each chain fit the room at once; and all that may take turns takes no more than the spec's limit.

Where loads are expected, segments are kept that would be read too often: `HOT` of a reader's time for one alone. Where
none are, nothing is: who comes is seen when they are served, and what is wanted most then stays in the room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blockc.cost.rates import READ_BYTES_PER_S
from blockc.diag import Diagnostics, Span
from blockc.graph import Chain
from blockc.ir.layout import block_tensors, format_bytes, tensor_share
from blockc.ir.turns import own_tensors, reading_bytes
from blockc.place.problem import PlaceProblem, PlaceTurn
from blockc.plan import TurnEntry
from blockc.spec.deployment import Deployment, FineTune, KeptIn
from blockc.unify import UnifiedGraph

# A segment that takes so much of the time of what reads: each request would wait for it as long as for a fifth of all.
HOT: Final = 0.1


def base_blocks(deployment: Deployment, chains: Mapping[str, Chain]) -> frozenset[str]:
    """Digests of what bases consist of. ``chains``: of all models, those that no app uses among them."""
    return frozenset(block.digest for name in deployment.bases if name in chains for block in chains[name].path.blocks)


def place_turns(deployment: Deployment, graph: UnifiedGraph, bases: frozenset[str]) -> dict[int, PlaceTurn]:
    """By segment what it brings, if its weights may take turns: where a fine-tune has blocks of its own."""
    if deployment.policy.blocks_limit_bytes is None:
        return {}
    runs = [graph.paths[item.paths[0]].blocks[item.first : item.first + item.count] for item in graph.segments]
    preludes = [path.prelude for path in graph.paths.values() if path.prelude is not None]
    own = own_tensors(
        [[ref for block in run for ref in block.tensors.values()] for run in runs],
        [ref for block in preludes for ref in block.tensors.values()],
    )
    wanted = _wanted(deployment, graph)
    found = {}
    for segment, (run, digests) in enumerate(zip(runs, own, strict=True)):
        residency = wanted[segment]
        if not digests or all(block.digest in bases for block in run) or residency == "pin":
            continue
        found[segment] = PlaceTurn(
            tensors=frozenset(
                tensor
                for block in run
                for tensor in block_tensors(block.structure, block.tensors)
                if tensor.ref.digest in digests
            ),
            reading_bytes=max(reading_bytes(block.structure, block.tensors) for block in run),
            residency=residency,
        )
    return found


def _wanted(deployment: Deployment, graph: UnifiedGraph) -> list[KeptIn | None]:
    """What the spec says of each segment: the most that any model says that passes it; None: one says nothing."""
    said: list[set[KeptIn | None]] = [set() for _ in graph.segments]
    for name, chain in graph.chain_of.items():
        for segment in graph.segments_of[chain]:
            said[segment].add(_residency(deployment, name))
    order: tuple[KeptIn | None, ...] = ("pin", None, "stream", "cold")
    return [next(item for item in order if item in own) for own in said]


def _residency(deployment: Deployment, model: str) -> KeptIn | None:
    """A fine-tune's own, or that of the one that it was made of."""
    while (item := deployment.fine_tunes.get(model)) is not None:
        if item.residency is not None:
            return item.residency
        model = item.parent
    return None


def report_residency(deployment: Deployment, graph: UnifiedGraph, bases: frozenset[str], *, diags: Diagnostics) -> None:
    """Warn of fine-tunes that say where their blocks are kept, and have none of their own (BC804)."""
    for item in deployment.fine_tunes.values():
        chain = graph.chain_of.get(item.name)
        if item.residency is None or chain is None:
            continue
        if all(block.digest in bases for block in graph.chains[chain].path.blocks):
            diags.report(
                "BC804",
                f"`residency` acts on blocks of its own, and `{item.name}` has none: it is a fine-tune beside its base",
                at=_span(item),
                help="`fine_tunes` of the policy's `residency` says how many of those are in memory",
            )


def _span(item: FineTune) -> Span:
    return item.residency_span or item.span


def check_room(problem: PlaceProblem, diags: Diagnostics) -> bool:
    """Report BC401 where the room cannot hold the segments of some chain at once."""
    limit = problem.blocks_limit_bytes
    every = {number: own for number, item in enumerate(problem.segments) if (own := item.turn) is not None}
    sizes = {number: _bytes(own, 1) for number, own in every.items()}
    if limit is None or not every:
        return True
    if sum(sizes.values()) <= limit and not any(own.residency for own in every.values()):
        return True
    need, label = max(
        (sum(sizes.get(segment, 0) for segment in chain.segments), chain.label) for chain in problem.chains
    )
    needed = need + max(own.reading_bytes for own in every.values())
    if needed <= limit:
        return True
    diags.report(
        "BC401",
        f"the blocks of `{label}` and reading them take {format_bytes(needed)} of {format_bytes(limit)}",
        at=problem.blocks_limit_span,
        notes=(f"{format_bytes(need)} of blocks are in memory at once while it is served",),
        help=f"raise `blocks` of the policy's `residency` to {format_bytes(needed)} or more; "
        "or `residency = pin` keeps a fine-tune's beside it",
    )
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """``kept_bytes``: of segments that might take turns and do not; ``reading_bytes``: beside the room."""

    turns: tuple[TurnEntry, ...] = ()
    room_bytes: int = 0
    reading_bytes: int = 0
    kept_bytes: int = 0


def share_room(problem: PlaceProblem, chains: Sequence[int], *, kind: str, width: int = 1) -> Room:
    """What takes turns on a device of a cell of this ``kind`` and ``width`` that has these chains."""
    passing: dict[int, list[int]] = {}
    for chain in chains:
        for segment in problem.chains[chain].segments:
            if problem.segments[segment].turn is not None:
                passing.setdefault(segment, []).append(chain)
    limit = problem.blocks_limit_bytes
    every = {segment: turn for segment in sorted(passing) if (turn := problem.segments[segment].turn) is not None}
    sizes = {segment: _bytes(turn, width) for segment, turn in every.items()}
    if limit is None or not every:
        return Room()
    total = sum(sizes.values())
    if total <= limit and not any(turn.residency for turn in every.values()):
        return Room(kept_bytes=total)
    reading = max(turn.reading_bytes for turn in every.values())
    room = min(limit, total + reading) - reading
    rates = {segment: sum(_rate(problem, chain) for chain in own) for segment, own in passing.items()}
    kept = _kept(problem, chains, every, sizes, rates, room=room)
    turning = [segment for segment in every if segment not in kept]
    kept_bytes = sum(sizes[segment] for segment in kept)
    hosted = _hosted(every, turning, sizes, rates, host_bytes=0 if kind == "cpu" else problem.host_limit_bytes)
    return Room(
        turns=tuple(
            TurnEntry(
                segment=segment, nbytes=sizes[segment], kept="host" if segment in hosted else "zoo",
                uses_rps=rates[segment],
            )
            for segment in turning
        ),
        room_bytes=min(room - kept_bytes, sum(sizes[segment] for segment in turning)),
        reading_bytes=reading if turning else 0,
        kept_bytes=kept_bytes,
    )  # fmt: skip


def _kept(
    problem: PlaceProblem,
    chains: Sequence[int],
    every: Mapping[int, PlaceTurn],
    sizes: Mapping[int, int],
    rates: Mapping[int, float],
    *,
    room: int,
) -> set[int]:
    """Segments that stay: as many as there is room for beside the two largest chains of the others, the hottest first.

    If all fit together, those of which the spec says nothing stay.
    """
    kept: set[int] = set()
    fits = sum(sizes.values()) <= room
    for segment in sorted(every, key=lambda segment: (-rates[segment], segment)):
        hot = rates[segment] * sizes[segment] / READ_BYTES_PER_S >= HOT
        if every[segment].residency is not None or not (hot or fits):
            continue
        needs = sorted(
            (
                sum(sizes.get(own, 0) for own in problem.chains[chain].segments if own not in kept and own != segment)
                for chain in chains
            ),
            reverse=True,
        )
        if sum(sizes[own] for own in kept) + sizes[segment] + sum(needs[:2]) <= room or fits:
            kept.add(segment)
    return kept


def _hosted(
    every: Mapping[int, PlaceTurn],
    turning: Sequence[int],
    sizes: Mapping[int, int],
    rates: Mapping[int, float],
    *,
    host_bytes: int | None,
) -> set[int]:
    """Segments that wait in the host's memory: those that have to, and others while there is any, the hottest first."""
    hosted = {segment for segment in turning if every[segment].residency == "stream"}
    left = (host_bytes or 0) - sum(sizes[segment] for segment in hosted)
    for segment in sorted(turning, key=lambda segment: (-rates[segment], segment)):
        if every[segment].residency is None and sizes[segment] <= left:
            hosted.add(segment)
            left -= sizes[segment]
    return hosted


def _rate(problem: PlaceProblem, chain: int) -> float:
    return float(problem.chains[chain].rate_rps or 0)


def _bytes(turn: PlaceTurn, width: int) -> int:
    return sum(tensor_share(tensor, width) for tensor in turn.tensors)
