"""Pipelines, and what was placed beside them, as the tables of one plan.

In: a problem, its pipelines, the placement of the rest. Out: one placement. Invariant: every device's memory entry is a
`Layout` that fits it, and all stages of a pipeline have the same pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from blockc.ir.layout import Layout
from blockc.place.cells import Views
from blockc.place.pages import share_pages
from blockc.place.problem import PlaceProblem
from blockc.place.stages.bound import stages_bound
from blockc.place.stages.parts import Parts
from blockc.place.stages.pipelines import Pipeline
from blockc.place.stages.rest import kept
from blockc.place.stages.staged import Staged, expected_pages
from blockc.place.tables import Placement, empty_entry, memory_entry
from blockc.place.traffic.placed import batch_of
from blockc.place.traffic.times import decoded_per_s
from blockc.plan import BaselineEntry, InstanceEntry, LoadEntry, MemoryEntry, RouteEntry, SolverEntry, StageEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fullest:
    """The fullest stage, as `share_pages` asks for it."""

    parts: Parts
    begins: tuple[int, ...]

    @property
    def problem(self) -> PlaceProblem:
        return self.parts.problem

    def least_pages(self, chains: Sequence[int], /) -> dict[int, int]:
        del chains
        return self.parts.least_pages

    def layout(self, chains: Sequence[int], pages: dict[int, int], /, *, reserve_bytes: int) -> Layout:
        del chains
        found = [self.parts.layout(a, b, pages, reserve_bytes=reserve_bytes) for a, b in pairwise(self.begins)]
        return max(found, key=lambda own: own.used_bytes)


def joined(
    views: Views, pipelines: Sequence[Pipeline], rest: Placement | None, *, moved_bytes: int | None = None
) -> Placement:
    """``rest``: of `rest_of` the problem; None: nothing is left to place. ``moved_bytes``: of the pipelines."""
    problem = views.problem
    taken = {device for own in pipelines for device in own.devices}
    staged_chains = {chain for own in pipelines for chain in own.staged.chains}
    devices = kept(len(problem.devices), taken)
    chains = kept(len(problem.chains), staged_chains)
    memory = {device: empty_entry(problem, device) for device in range(len(problem.devices))}
    instances: list[InstanceEntry] = []
    routes: dict[int, RouteEntry] = {}
    if rest is not None:
        memory |= {devices[own.device]: own.model_copy(update={"device": devices[own.device]}) for own in rest.memory}
        instances += [_moved(own, devices, chains) for own in rest.instances]
        routes |= {chains[own.chain]: own.model_copy(update={"chain": chains[own.chain]}) for own in rest.routes}
    for own in pipelines:
        numbers = []
        for copy in own.copies:
            numbers.append((len(instances),))
            entry, entries = _instance(problem, replace(own.staged, stages=copy))
            instances.append(entry)
            memory |= {item.device: item for item in entries}
        share = len(numbers)
        for chain in own.staged.chains:
            ttft_s = None if own.staged.ttft_s is None else own.staged.ttft_s.get(chain)
            routes[chain] = RouteEntry(
                chain=chain,
                alternatives=tuple(numbers),
                weights=(1 / share,) * share if share > 1 else (),
                ttft_s=None if ttft_s is None else round(ttft_s, 6),
                tpot_s=None if ttft_s is None or own.staged.tpot_s is None else round(own.staged.tpot_s, 6),
            )
    order = sorted(range(len(instances)), key=lambda number: instances[number].devices)
    place = {old: new for new, old in enumerate(order)}
    return Placement(
        instances=tuple(instances[number] for number in order),
        routes=tuple(
            routes[chain].model_copy(
                update={"alternatives": tuple(tuple(place[n] for n in way) for way in routes[chain].alternatives)}
            )
            for chain in sorted(routes)
        ),
        memory=tuple(memory[device] for device in sorted(memory)),
        baselines=BaselineEntry(pm_bytes=problem.pm_bytes, ps_bytes=problem.ps_bytes, ours_bytes=problem.ours_bytes),
        solver=_solver(views, pipelines, instances, None if rest is None else rest.solver, moved_bytes),
    )


def _moved(own: InstanceEntry, devices: Sequence[int], chains: Sequence[int]) -> InstanceEntry:
    return own.model_copy(
        update={
            "devices": tuple(devices[device] for device in own.devices),
            "chains": tuple(chains[chain] for chain in own.chains),
        }
    )


def _instance(problem: PlaceProblem, own: Staged) -> tuple[InstanceEntry, list[MemoryEntry]]:
    parts = own.parts
    offered_bytes = problem.devices[own.stages[0][0]].offered_bytes
    fullest = _Fullest(parts=parts, begins=own.begins)
    pages = share_pages(fullest, own.chains, offered_bytes=offered_bytes, expected=expected_pages(parts, own.copies))
    entries, stages = [], []
    for (first, stop), devices in zip(pairwise(own.begins), own.stages, strict=True):
        stages.append(StageEntry(first=first, count=stop - first, devices=devices))
        for device in devices:
            reserve_bytes = problem.devices[device].reserve_bytes
            used = parts.layout(first, stop, pages, reserve_bytes=reserve_bytes)
            entries.append(memory_entry(problem, device, used))
    segments = sorted({segment for chain in own.chains for segment in problem.chains[chain].segments})
    instance = InstanceEntry(
        segments=tuple(segments),
        devices=tuple(device for stage in own.stages for device in stage),
        chains=own.chains,
        max_rows=problem.max_rows,
        kv_pages=pages,
        load=_load(problem, own),
        stages=tuple(stages),
    )
    return instance, entries


def _load(problem: PlaceProblem, own: Staged) -> LoadEntry | None:
    """Of the busiest stage; a launch has the rows of one of the steps that are under way."""
    if own.tau_s is None:
        return None
    busiest = max(range(len(own.traffic)), key=lambda stage: (own.traffic[stage] + own.sweeps[stage], -stage))
    rates: dict[int, float] = {}
    for chain in own.chains:
        load = problem.chains[chain].load
        for segment in problem.chains[chain].segments if load is not None else ():
            rate = decoded_per_s(load) / own.copies if load is not None else 0.0
            rates[segment] = rates.get(segment, 0.0) + rate
    return LoadEntry(
        cadence_s=round(own.tau_s, 9),
        traffic=round(own.traffic[busiest], 6),
        sweeps=round(own.sweeps[busiest], 6),
        limit=round(own.limit, 6),
        rows=round(own.rows, 3),
        batches={segment: batch_of(rate, own.tau_s) for segment, rate in sorted(rates.items())},
    )


def _solver(
    views: Views, pipelines: Sequence[Pipeline], instances: Sequence[InstanceEntry], rest: SolverEntry | None,
    moved_bytes: int | None,
) -> SolverEntry:  # fmt: skip
    """What both take of the first goal, and what no plan that divides the same chains does without."""
    problem = views.problem
    goals = problem.objective if rest is None or not rest.values else rest.objective
    before = {} if rest is None else dict(zip(rest.objective, rest.values or (rest.value,), strict=False))
    values = tuple(_value(problem, goal, pipelines, instances, before.get(goal, 0.0)) for goal in goals)
    divided = {chain for own in pipelines for chain in own.staged.chains}
    bound = stages_bound(views, divided, rest, values[0])
    return SolverEntry(
        objective=goals,
        value=values[0],
        values=values,
        bound=bound.value,
        gap=(values[0] - bound.value) / values[0] if values[0] else 0.0,
        status="optimal" if bound.value == values[0] else "feasible",
        seed=problem.seed,
        solver="stages" if rest is None else f"stages, {rest.solver}",
        bound_kind=bound.kind,
        moved_bytes=None if moved_bytes is None else moved_bytes + ((rest and rest.moved_bytes) or 0),
    )


def _value(
    problem: PlaceProblem, goal: str, pipelines: Sequence[Pipeline], instances: Sequence[InstanceEntry], rest: float
) -> float:
    used = {device for own in instances for device in own.devices}
    loads = [own.load for own in instances if own.load is not None]
    match goal:
        case "devices":
            return float(len(used))
        case "cost":
            return float(sum(p for d in sorted(used) if (p := problem.devices[d].price_per_hour) is not None))
        case "peak_load":
            return round(max((load.traffic + load.sweeps for load in loads), default=0.0), 6)
        case "slo":
            return round(max(((load.traffic + load.sweeps) / load.limit for load in loads), default=0.0), 6)
        case "memory":
            return rest + sum(_resident(own.staged) * len(own.copies) for own in pipelines)
        case _:
            return rest + sum(sent_bytes_per_s(problem, own.staged) * len(own.copies) for own in pipelines)


def _resident(own: Staged) -> int:
    layouts = [own.parts.layout(first, stop, own.parts.least_pages) for first, stop in pairwise(own.begins)]
    return sum(own.parts.width * (item.weights_bytes + item.sides_bytes + item.kv_bytes) for item in layouts)


def sent_bytes_per_s(problem: PlaceProblem, own: Staged) -> float:
    """Hidden states over all hops of one copy, and what the devices of each stage tell each other."""
    total = 0.0
    for chain in own.chains:
        load = problem.chains[chain].load
        if load is None or problem.work is None:
            continue
        tokens = float(load.rate_rps * (load.prompt_tokens + load.output_tokens)) / own.copies
        total += tokens * sum(own.parts.state_bytes(first) for first in own.begins[1:-1])
        reduces = sum(problem.work.segments[segment].reduce_bytes for segment in problem.chains[chain].segments)
        total += tokens * 2 * (own.parts.width - 1) * reduces
    return float(round(total))
