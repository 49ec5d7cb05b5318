"""Pipelines from those of an earlier plan: as they were as far as they hold, or divided anew and put where most lies.

In: a problem with what an earlier plan has where. Out: ways to run what is to be in stages, and the bytes that each
loads. *Kept* pipelines have the stages that they had, on the devices that they had; a stage whose devices are gone goes
to free ones, and what fits no such pipeline is divided anew beside them. *Anew* is as without an earlier plan. New
pipelines trade nodes with others like theirs, node by node and cell by cell, so that the fewest bytes are loaded
(assignment problems); what travels between their stages takes the same links then.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from blockc.cost.work import part_of_sides
from blockc.ir.layout import tensor_share
from blockc.place.assign import cheapest
from blockc.place.cells import Views
from blockc.place.problem import BeforePipeline, PlaceBefore, PlaceProblem
from blockc.place.stages.parts import Parts
from blockc.place.stages.pipelines import (
    Pipeline,
    alike_devices,
    allowed,
    copies_asked,
    judged,
    may_share,
    nodes_of,
    pipelines_of,
    staged_chains,
)
from blockc.place.traffic.goals import COUNTED
from blockc.plan import SolverEntry

_FAR: Final = 10**15

_Cell = tuple[int, ...]


def replans(views: Views, before: PlaceBefore) -> tuple[tuple[Pipeline, ...], ...]:
    """Ways to go on from an earlier plan, each once; what keeps most first."""
    problem = views.problem

    def named(pipeline: Pipeline, free: Collection[int]) -> Pipeline:
        return _named(problem, before, pipeline, allowed(problem, pipeline.staged.chains, free))

    ways = [pipelines_of(views, kept, named) for kept in (_kept(views, before), ())]
    found: dict[object, tuple[Pipeline, ...]] = {}
    for way in ways:
        if way is not None:
            alike = frozenset((own.staged.chains, own.staged.begins, frozenset(own.copies)) for own in way)
            found.setdefault(alike, way)
    return tuple(found.values())


def moves(solver: SolverEntry, budget_bytes: int | None) -> tuple[bool, float, float]:
    """To be little of: within the budget first of what a plan takes, then of what it loads; beyond it the reverse."""
    values = dict(zip(solver.objective, solver.values or (solver.value,), strict=False))
    spent = next(value for goal, value in values.items() if goal in COUNTED)
    moved = float(solver.moved_bytes or 0)
    if budget_bytes is None or moved <= budget_bytes:
        return False, spent, moved
    return True, moved, spent


def moved_bytes(problem: PlaceProblem, pipelines: Sequence[Pipeline], before: PlaceBefore) -> int:
    """Weights and sides that lie on devices which did not have them. A share of another width is another thing."""
    return sum(
        _loaded(problem, before, own.staged.parts, part, devices)
        for own in pipelines
        for copy in own.copies
        for part, devices in zip(pairwise(own.staged.begins), copy, strict=True)
    )


def _loaded(problem: PlaceProblem, before: PlaceBefore, parts: Parts, part: tuple[int, int], devices: _Cell) -> int:
    """By the devices of one stage."""
    total = 0
    for device in devices:
        alike = before.widths.get(device) == parts.width
        total += parts.missing_bytes(*part, before.tensors.get(device, frozenset()) if alike else frozenset())
        held = before.chains.get(device, frozenset()) if alike else frozenset()
        first, stop = before.parts.get(device, (0, parts.blocks))
        there = range(max(first, part[0]), min(stop, part[1]))
        for chain in parts.chains:
            nbytes = problem.chains[chain].side_bytes
            missing = part_of_sides(nbytes, parts.blocks, range(*part))
            missing -= part_of_sides(nbytes, parts.blocks, there) if chain in held and there else 0
            total += -(-missing // parts.width)
    return total


def _displaced(problem: PlaceProblem, before: PlaceBefore, chains: Collection[int]) -> dict[int, int]:
    """By device: bytes that other chains have there, and that would have to be loaded elsewhere."""
    others = {segment for number, own in enumerate(problem.chains) if number not in chains for segment in own.segments}
    used = {tensor.ref.digest: tensor for segment in others for tensor in problem.segments[segment].tensors}
    return {
        device: sum(tensor_share(used[digest], before.widths[device]) for digest in had if digest in used)
        for device, had in before.tensors.items()
    }


def _kept(views: Views, before: PlaceBefore) -> tuple[Pipeline, ...]:
    """Earlier pipelines that hold, with what of them is gone on free devices; then others join where there is room."""
    problem = views.problem
    wanted = staged_chains(views)
    earlier = [replace(own, chains=tuple(chain for chain in own.chains if chain in wanted)) for own in before.pipelines]
    earlier = [own for own in earlier if own.chains and problem.stages in (0, len(own.begins) - 1)]
    taken = {device for own in earlier for copy in own.copies for stage in copy for device in stage or ()}
    free = [device for device in range(len(problem.devices)) if device not in taken]
    kept: list[Pipeline] = []
    for own in earlier:
        chains = [chain for chain in own.chains if all(chain not in other.staged.chains for other in kept)]
        found = _mended(problem, before, replace(own, chains=tuple(chains)), free) if chains else None
        if found is not None:
            kept.append(found)
            free = [device for device in free if device not in found.devices]
    for chain in wanted:
        if any(chain in own.staged.chains for own in kept):
            continue
        for place, there in enumerate(kept):
            joined = _joined(problem, there, chain)
            if joined is not None:
                kept[place] = joined
                break
    return tuple(kept)


def _joined(problem: PlaceProblem, own: Pipeline, chain: int) -> Pipeline | None:
    """One more chain in a pipeline that stays where it is."""
    if not may_share(problem, own.staged.chains, chain):
        return None
    parts = Parts(problem, tuple(sorted((*own.staged.chains, chain))), own.staged.parts.width)
    found = judged(problem, parts, own.copies, own.staged.begins)
    return found if found is not None and _keeps_rules(problem, found) else None


def _mended(problem: PlaceProblem, before: PlaceBefore, own: BeforePipeline, free: Sequence[int]) -> Pipeline | None:
    """The fewest of its copies that hold, those of which least is gone first; on nodes of its own if it has to be."""
    if len({len(problem.chains[chain].blocks) for chain in own.chains}) != 1:
        return None
    for place, chain in enumerate(own.chains):
        if not may_share(problem, own.chains[:place] or (chain,), chain):
            return None
    width = next((len(stage) for copy in own.copies for stage in copy if stage is not None), 0)
    if not width:
        return None
    parts = Parts(problem, own.chains, width)
    for near in (False, True):
        found = _mended_with(problem, before, parts, own, free, near=near)
        if found is not None:
            return found
    return None


def _mended_with(
    problem: PlaceProblem, before: PlaceBefore, parts: Parts, own: BeforePipeline, free: Sequence[int], *, near: bool
) -> Pipeline | None:
    left, copies = allowed(problem, own.chains, free), list[tuple[_Cell, ...]]()
    for copy in sorted(own.copies, key=lambda copy: sum(stage is None for stage in copy)):
        whole = _filled(problem, before, parts, own.begins, copy, left, near=near)
        if whole is None:
            continue
        copies.append(whole)
        left = [device for device in left if all(device not in stage for stage in whole)]
        found = judged(problem, parts, copies, own.begins)
        if found is not None and _keeps_rules(problem, found):
            return found
    return None


def _filled(
    problem: PlaceProblem, before: PlaceBefore, parts: Parts, begins: Sequence[int], copy: Sequence[_Cell | None],
    free: Sequence[int], *, near: bool,
) -> tuple[_Cell, ...] | None:  # fmt: skip
    """Stages whose devices are gone on free ones where least moves. ``near``: rather on nodes that the copy is on."""
    left, found, displaced = list(free), list(copy), _displaced(problem, before, parts.chains)
    for number, part in enumerate(pairwise(begins)):
        if found[number] is not None:
            continue
        there = next((stage[0] for stage in found if stage is not None), None)
        nodes = {problem.devices[stage[0]].node for stage in found if stage is not None}
        options = [
            (
                near and problem.devices[cell[0]].node not in nodes,
                _loaded(problem, before, parts, part, cell) + sum(displaced.get(device, 0) for device in cell),
                cell,
            )
            for kind in alike_devices(problem, left if there is None else [*left, there])
            if there is None or any(there in node for node in kind)
            for node in kind
            for cell in _cells(before, parts.width, [device for device in node if device != there])
        ]
        if not options:
            return None
        found[number] = min(options)[2]
        left = [device for device in left if device not in min(options)[2]]
    return tuple(stage for stage in found if stage is not None)


def _keeps_rules(problem: PlaceProblem, own: Pipeline) -> bool:
    """Whether it is on devices alike, where pins allow, in as many copies and on as many nodes as it is to be."""
    copies, nodes = copies_asked(problem, own.staged.chains)
    return (
        len(own.copies) >= copies
        and nodes_of(problem, own) >= nodes
        and len(alike_devices(problem, own.devices)) == 1
        and len(allowed(problem, own.staged.chains, own.devices)) == len(own.devices)
    )


def _cells(before: PlaceBefore, width: int, devices: Sequence[int]) -> list[_Cell]:
    """Free devices of a node as cells: those that were cells of this width first."""
    free = set(devices)
    stages = (stage for own in before.pipelines for copy in own.copies for stage in copy if stage is not None)
    found = []
    for cell in (*stages, *(own.devices for own in before.cells)):
        if len(cell) == width and free.issuperset(cell):
            found.append(cell)
            free -= set(cell)
    rest = sorted(free)
    return [*found, *(tuple(rest[at : at + width]) for at in range(0, len(rest) - width + 1, width))]


def _named(problem: PlaceProblem, before: PlaceBefore, own: Pipeline, free: Sequence[int]) -> Pipeline:
    """The same pipeline with each of its nodes on another, and there on the cells, where least has to be loaded."""
    staged, displaced = own.staged, _displaced(problem, before, own.staged.chains)
    parts = list(pairwise(staged.begins))
    slots: dict[str, list[tuple[int, int]]] = {}  # node -> copies and stages that are on it
    for number, copy in enumerate(own.copies):
        for stage, cell in enumerate(copy):
            slots.setdefault(problem.devices[cell[0]].node, []).append((number, stage))
    kind = next(kind for kind in alike_devices(problem, free) if any(own.devices[0] in node for node in kind))
    places = [_cells(before, staged.parts.width, node) for node in kind]

    def costs(slot: Sequence[tuple[int, int]], cells: Sequence[_Cell]) -> list[list[int]]:
        return [
            [
                _loaded(problem, before, staged.parts, parts[stage], cell)
                + sum(displaced.get(device, 0) for device in cell)
                for cell in cells
            ]
            for _, stage in slot
        ]

    table: list[list[tuple[int, tuple[int, ...]]]] = []
    for slot in slots.values():
        row: list[tuple[int, tuple[int, ...]]] = []
        for cells in places:
            if len(cells) < len(slot):
                row.append((_FAR, ()))
                continue
            own_costs = costs(slot, cells)
            columns = cheapest(own_costs)
            row.append((sum(line[column] for line, column in zip(own_costs, columns, strict=True)), columns))
        table.append(row)
    chosen = cheapest([[cost for cost, _ in row] for row in table])
    found: dict[tuple[int, int], _Cell] = {}
    for slot, row, place in zip(slots.values(), table, chosen, strict=True):
        found |= {at: places[place][column] for at, column in zip(slot, row[place][1], strict=True)}
    copies = tuple(tuple(found[number, stage] for stage in range(len(parts))) for number in range(len(own.copies)))
    return Pipeline(staged=replace(staged, stages=copies[0]), copies=copies)
