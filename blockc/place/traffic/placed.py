"""A packing that was solved -> cells with loads, routes with shares, and the solver's figures, as a plan has them.

In: a problem, its packing, the solution. Out: what `placement_of` writes. Figures are what the cost model expects,
with the shares of requests that the routes have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from blockc.place.cells import Views
from blockc.place.cpsat import solver_version
from blockc.place.problem import PlaceProblem
from blockc.place.tables import Filled
from blockc.place.traffic.goals import PEAKS, amount, said
from blockc.place.traffic.packing import PARTS, PackedCell, Packing, cadence_of, sweep_of
from blockc.place.traffic.shares import shares_of
from blockc.place.traffic.solve import Solved
from blockc.place.traffic.times import chain_times, decoded_per_s, first_token_s, paced_s
from blockc.place.traffic.units import kv_demand
from blockc.plan import LoadEntry, RouteEntry, SearchEntry, SolverEntry

# More than the mean of tokens in a launch, so that a burst finds one prepared.
_BATCH_MARGIN = 1.5
_MOST_BATCH = 256
_NS = 10**9


def placed(
    views: Views, packing: Packing, solved: Solved, *, moved_bytes: int | None = None
) -> tuple[list[Filled], tuple[RouteEntry, ...], SolverEntry]:
    """Cells in order of device, a route for each chain, and the solver's entry."""
    assert solved.cells is not None
    problem = views.problem
    cells = sorted(solved.cells, key=lambda cell: cell.devices)
    shares = shares_of(packing, cells)
    filled = [_filled(problem, packing, number, cell, shares) for number, cell in enumerate(cells)]
    routes = tuple(_route(problem, cells, filled, chain, shares[chain]) for chain in range(len(problem.chains)))
    first = packing.goals[0]
    values = tuple(_value(packing, goal, cells, filled, shares) for goal in packing.goals)
    bound = min(said(first, solved.bound), values[0])
    entry = SolverEntry(
        objective=packing.goals,
        value=values[0],
        values=values,
        bound=bound,
        gap=(values[0] - bound) / values[0] if values[0] else 0.0,
        status="feasible",
        seed=problem.seed,
        solver=solver_version(),
        bound_kind=solved.bound_kind,  # type: ignore[arg-type]
        history=tuple(
            SearchEntry(
                units=round(step.units, 6), value=None if step.value is None else said(first, step.value),
                bound=said(first, step.bound),
            )
            for step in solved.history
        ),
        moved_bytes=moved_bytes,
    )  # fmt: skip
    return filled, routes, entry


def _value(
    packing: Packing, goal: str, cells: Sequence[PackedCell], filled: Sequence[Filled],
    shares: Mapping[int, Mapping[int, float]],
) -> float:  # fmt: skip
    """Of one goal; what depends on load with the shares of requests that the routes have."""
    if goal in PEAKS:
        loads = [own.load for own in filled if own.load is not None]
        busy = [(load.traffic + load.sweeps) / (load.limit if goal == "slo" else 1) for load in loads]
        return round(max(busy, default=0.0), 6)
    if goal == "communication":
        sent = (
            packing.kinds[cells[number].kind].unit_sent[group] * packing.groups[group].units * share
            for group, own in shares.items()
            for number, share in own.items()
        )
        return round(sum(sent), 1)
    return said(goal, max(amount(packing, goal, cells), goal == "devices"))


def _filled(
    problem: PlaceProblem, packing: Packing, number: int, cell: PackedCell, shares: Mapping[int, Mapping[int, float]]
) -> Filled:
    kind, tau_ns = packing.kinds[cell.kind], cadence_of(packing, cell)
    here = {group: shares[group][number] * packing.groups[group].units for group, _ in cell.units}
    tokens_per_s = sum(packing.groups[group].milli_tokens * units for group, units in here.items()) / 1000
    sweep_s = (sweep_of(packing, cell) + kind.step_ns) / _NS
    tau_s = None if tau_ns is None else paced_s(tau_ns / _NS, tokens_per_s, packing.rows)
    sweeps = 0.0 if tau_s is None else sweep_s / tau_s
    traffic = sum(kind.unit_parts[group] * units for group, units in here.items())
    expected: dict[int, float] = {}
    for group, _ in cell.units:
        chain = problem.chains[group]
        for kv in chain.groups:
            pages = kv_demand(problem, chain, kv) * shares[group][number]
            expected[kv] = expected.get(kv, 0.0) + pages
    return Filled(
        cell=cell.devices,
        chains=tuple(group for group, _ in cell.units),
        expected={kv: math.floor(pages) for kv, pages in expected.items()},
        load=LoadEntry(
            cadence_s=None if tau_s is None else round(tau_s, 9),
            traffic=round(traffic / PARTS, 6),
            sweeps=round(sweeps, 6),
            limit=round(min(kind.limit[group] for group in here) / PARTS, 6),
            # A step takes a sweep and what traffic adds to it, and has the tokens that came while one ran (Little).
            rows=round(tokens_per_s * sweep_s / (1 - min(0.99, traffic / PARTS)), 3),
            batches={} if tau_s is None else _batches(problem, here, packing, tau_s),
        ),
    )


def _batches(problem: PlaceProblem, units: Mapping[int, float], packing: Packing, tau_s: float) -> dict[int, int]:
    """Tokens of each segment's launch."""
    tokens: dict[int, float] = {}
    for group, count in units.items():
        chain = problem.chains[group]
        if chain.load is not None:
            part = count / packing.groups[group].units
            rate = part * decoded_per_s(chain.load)
            for segment in chain.segments:
                tokens[segment] = tokens.get(segment, 0.0) + rate
    return {segment: batch_of(rate, tau_s) for segment, rate in sorted(tokens.items())}


def batch_of(rate_per_s: float, tau_s: float) -> int:
    """Tokens of a launch: what arrives in a cadence, with a margin, as a power of two."""
    return min(_MOST_BATCH, 1 << (max(1, math.ceil(_BATCH_MARGIN * rate_per_s * tau_s)) - 1).bit_length())


def _route(
    problem: PlaceProblem, cells: list[PackedCell], filled: list[Filled], chain: int, shares: Mapping[int, float]
) -> RouteEntry:
    load = problem.chains[chain].load
    ttft_s, tpot_s = 0.0, 0.0
    for number in shares:
        own = filled[number].load
        if load is None or own is None or own.cadence_s is None or problem.work is None:
            continue
        devices = cells[number].devices
        rates = problem.rates_of(problem.devices[devices[0]].kind, len(devices))
        assert rates is not None, "nothing is placed by load on devices of which nothing is known"
        work = problem.work
        times = chain_times(work.chains[chain], work.segments, rates, load, step_tokens=problem.max_batched_tokens)
        busy = min(0.99, own.traffic + own.sweeps)
        ttft_s = max(ttft_s, first_token_s(times.prompt_s, busy, own.cadence_s))
        tpot_s = max(tpot_s, own.cadence_s)
    return RouteEntry(
        chain=chain,
        alternatives=tuple((number,) for number in shares),
        weights=tuple(shares.values()) if len(shares) > 1 else (),
        ttft_s=round(ttft_s, 6) if tpot_s else None,
        tpot_s=round(tpot_s, 6) if tpot_s else None,
    )
