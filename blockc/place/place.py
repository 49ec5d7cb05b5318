"""Decide where every chain runs and how many KV pages it may use.

In: a :class:`PlaceProblem`. Out: a :class:`Placement`, or None with the reason reported. A chain runs wholly on one
device, or on one cell of several devices where it fits none; a segment that chains on several of them pass is resident
on each. Invariant: pure and seeded, and every device's memory entry is a `Layout` that fits it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from blockc.diag import Diagnostics
from blockc.ir.layout import format_bytes
from blockc.place.bound import devices_bound
from blockc.place.cells import Cell, Views, all_fit, fill_cells
from blockc.place.cpsat import Solution, fits_solver, solve, solver_version
from blockc.place.evaluate import evaluate
from blockc.place.explain import explain_infeasible
from blockc.place.greedy import greedy
from blockc.place.loads import are_speeds_known, with_served, without_unknown
from blockc.place.price import price_of
from blockc.place.problem import DEFAULT_OBJECTIVE, PlaceProblem
from blockc.place.sizes import Sizes
from blockc.place.slots import check_slots
from blockc.place.stages.explain import report_no_pipeline, report_nothing_left, report_without_effect
from blockc.place.stages.pipelines import Pipeline, pipelines_of, staged_chains
from blockc.place.stages.replan import moved_bytes, moves, replans
from blockc.place.stages.rest import rest_of
from blockc.place.stages.shed import served_in_stages
from blockc.place.stages.tables import joined
from blockc.place.tables import Filled, Placement, placement_of
from blockc.place.traffic.explain import check_targets, explain_packing
from blockc.place.traffic.packing import Packing
from blockc.place.traffic.placed import placed
from blockc.place.traffic.replan import replanned
from blockc.place.traffic.rows import report_rows
from blockc.place.traffic.shed import fits, report_shed, served_parts
from blockc.place.traffic.solve import Solved
from blockc.place.traffic.solve import solve as solve_packing
from blockc.place.traffic.units import packing_of
from blockc.place.turns import check_room
from blockc.plan import MemoryEntry, RouteEntry, SolverEntry


def place(problem: PlaceProblem, *, diags: Diagnostics) -> Placement | None:
    """Place all chains. None exactly if an error was reported (BC401, BC402, BC501; BC999 for a defect of ours)."""
    if not (check_slots(problem, diags) and check_room(problem, diags)):
        return None
    if not _check_rules(problem, diags):
        return None
    views = Views(problem=problem)
    _report_unknown(problem, diags)
    placement = place_staged(views, diags=diags) if staged_chains(views) else None
    if placement is None and not diags.has_errors:
        placement = _place_cells(views, diags=diags)
    if placement is not None:
        _report_gap(problem, placement.solver, diags)
        report_rows(with_served(problem, placement.served), placement, diags)
        _check_expectations(problem, placement.memory, diags)
    return placement


def place_staged(views: Views, *, diags: Diagnostics) -> Placement | None:
    """Pipelines first, all else on the devices that are left. None without an error: there are no such pipelines."""
    problem, tried = views.problem, Diagnostics()
    placement = _staged(views, diags=tried)
    sheds = placement is None and problem.sheds and decides_by_load(problem)
    is_ours = any(item.code.id == "BC999" for item in tried)
    served = served_in_stages(views) if sheds and not is_ours else None
    if served is None:
        diags.items.extend(tried)
        return placement
    report_shed(problem, served, diags)
    placement = _staged(views.with_problem(with_served(problem, served)), diags=diags)
    return placement and _checked(problem, replace(placement, served=served), diags)


def _staged(views: Views, *, diags: Diagnostics) -> Placement | None:
    before, budget_bytes = views.problem.before, views.problem.move_budget_bytes
    tried: list[tuple[Placement, Diagnostics]] = []
    for way in () if before is None else replans(views, before):
        own = Diagnostics()
        placement = _beside(views, way, diags=own)
        if placement is not None:
            tried.append((placement, own))
    if tried:
        placement, own = min(tried, key=lambda item: moves(item[0].solver, budget_bytes))
        diags.items.extend(own)
        return placement
    pipelines = pipelines_of(views)
    if pipelines is None:
        report_no_pipeline(views, diags=diags)
        return None
    return _beside(views, pipelines, diags=diags)


def _beside(views: Views, pipelines: Sequence[Pipeline], *, diags: Diagnostics) -> Placement | None:
    """All else beside these pipelines. None exactly if an error was reported."""
    problem, before = views.problem, views.problem.before
    divided = {chain for own in pipelines for chain in own.staged.chains}
    taken = {device for own in pipelines for device in own.devices}
    report_without_effect(problem, divided, diags=diags)
    moved = None if before is None else moved_bytes(problem, pipelines, before)
    rest = None
    if len(divided) < len(problem.chains):
        left = rest_of(problem, divided, taken)
        if not left.devices:
            report_nothing_left(views, divided, diags=diags)
            return None
        if moved is not None and left.move_budget_bytes is not None:
            left = replace(left, move_budget_bytes=max(0, left.move_budget_bytes - moved))
        rest = _place_cells(Views(problem=left), diags=diags)
        if rest is None:
            return None
    return _checked(problem, joined(views, pipelines, rest, moved_bytes=moved), diags)


def _place_cells(views: Views, *, diags: Diagnostics) -> Placement | None:
    return (place_traffic if goes_by_traffic(views.problem) else place_bytes)(views, diags=diags)


def _check_rules(problem: PlaceProblem, diags: Diagnostics) -> bool:
    """Report rules that can never hold (BC402)."""
    broken = [rule for rule in problem.rules if rule.conflict is not None]
    for rule in broken:
        diags.report(
            "BC402",
            f"`{rule.text}` cannot hold: {rule.conflict}",
            at=rule.span,
            help="give one of them a fine-tune of its own, or leave the rule out",
        )
    return not broken


def _report_unknown(problem: PlaceProblem, diags: Diagnostics) -> None:
    """Warn of loads that decide nothing, for want of rates (BC404)."""
    loaded = [chain for chain in problem.chains if chain.load is not None]
    kinds = sorted({device.kind for device in problem.devices})
    if loaded and problem.work is not None and not are_speeds_known(problem):
        diags.report(
            "BC404",
            f"memory decides, not the load of {len(loaded)} models: nothing is known of how fast a `{kinds[0]}` is",
            at=loaded[0].load.span if loaded[0].load is not None else None,
            help="name the device's kind, or measure: `blockc profile`, then `blockc compile --profile`",
        )


def decides_by_load(problem: PlaceProblem) -> bool:
    """Whether what is expected counts: loads on devices of which something is known."""
    return problem.work is not None and are_speeds_known(problem)


def goes_by_traffic(problem: PlaceProblem) -> bool:
    """Whether anything but bytes decides: loads whose cost is known, rules, or an earlier plan."""
    loads = any(chain.load is not None for chain in problem.chains)
    if problem.objective != DEFAULT_OBJECTIVE:
        return True
    # Without known rates, rules and what was there before are kept to, and loads are left out (BC404).
    return bool(problem.rules) or problem.before is not None or (decides_by_load(problem) and loads)


def place_bytes(views: Views, *, diags: Diagnostics) -> Placement | None:
    """By bytes alone. None exactly if an error was reported (BC401, BC402)."""
    found = _assign(views)
    if found.solution.assignment is not None:
        return _checked(views.problem, _placement(views, found), diags)
    if found.solution.infeasible or devices_bound(views.at(1)) > len(views.problem.devices):
        explain_infeasible(views, diags=diags)
    else:
        _report_limit(views.problem, diags)
    return None


def place_traffic(views: Views, *, diags: Diagnostics) -> Placement | None:
    """By loads, targets and rules. None exactly if an error was reported (BC401, BC402, BC501)."""
    views = views.with_problem(without_unknown(views.problem))
    problem, served = views.problem, dict[str, Fraction]()
    packing = packing_of(views)
    if not check_targets(views, packing, diags=diags):
        return None
    solved = _solved(problem, packing)
    if solved.cells is None and problem.sheds:
        served |= served_parts(problem, lambda less: fits(views.with_problem(less))) or {}
    if served:
        report_shed(problem, served, diags)
        views = views.with_problem(with_served(problem, served))
        packing = packing_of(views)
        solved = _solved(views.problem, packing)
    if solved.cells is None:
        explain_packing(views, packing, solved, diags=diags)
        return None
    moved = None
    if problem.before is not None:
        cells, moved = replanned(views, packing, solved.cells, problem.before, budget_bytes=problem.move_budget_bytes)
        solved = replace(solved, cells=cells)
    placement = placement_of(views, *placed(views, packing, solved, moved_bytes=moved))
    return _checked(problem, replace(placement, served=served), diags)


def _solved(problem: PlaceProblem, packing: Packing) -> Solved:
    return solve_packing(packing, seed=problem.seed, limit_s=float(problem.solver_time_limit_s), gap=float(problem.gap))


def _checked(problem: PlaceProblem, placement: Placement, diags: Diagnostics) -> Placement | None:
    """The placement, with its price, if it holds; else nothing is written, and a defect is reported (BC999)."""
    problems = evaluate(problem, placement)
    if not problems:
        return replace(placement, price=price_of(with_served(problem, placement.served), placement.instances))
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    diags.report(
        "BC999",
        f"a placement was found that does not hold: {problems[0]}{more}",
        at=problem.cluster_span,
        help="this is a bug in blockc, not in the spec: please report it, with the spec",
    )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A solution, what its assignment counts in, and the name of what found it."""

    solution: Solution
    cells: tuple[Cell, ...]
    solver: str


def _assign(views: Views) -> _Found:
    """Chains to single devices if each fits one; to cells of several if not, or if that is the only way."""
    problem, sizes = views.problem, views.at(1)
    singles = tuple((device,) for device in range(len(problem.devices)))
    largest = max(device.offered_bytes for device in problem.devices)
    if all(sizes.least([chain]).used_bytes <= largest for chain in range(len(problem.chains))):
        solution, solver = _assign_devices(sizes)
        if solution.assignment is not None or len(problem.devices) == 1:
            return _Found(solution=solution, cells=singles, solver=solver)
        infeasible = solution.infeasible
    else:
        infeasible = not all_fit(views)
    bound = devices_bound(sizes)
    plan = fill_cells(views) if bound <= len(problem.devices) else None
    solution = Solution(
        assignment=plan.assignment if plan else None, devices_bound=bound, infeasible=infeasible, proven=False
    )
    return _Found(solution=solution, cells=plan.cells if plan else singles, solver="greedy over cells")


def _assign_devices(sizes: Sizes) -> tuple[Solution, str]:
    """An assignment to single devices. One device leaves nothing to choose."""
    problem = sizes.problem
    if len(problem.devices) == 1 or not problem.chains:
        every = tuple(0 for _ in problem.chains)
        fits = sizes.least(range(len(every))).used_bytes <= problem.devices[0].offered_bytes
        return Solution(
            assignment=every if fits else None, devices_bound=1, infeasible=not fits, proven=fits
        ), "one device"
    bound = devices_bound(sizes)
    found = greedy(sizes) if bound <= len(problem.devices) else None
    if bound > len(problem.devices):
        return Solution(assignment=None, devices_bound=bound, infeasible=True, proven=False), "sum of bytes"
    if not fits_solver(sizes):
        return Solution(assignment=found, devices_bound=bound, infeasible=False, proven=False), "greedy"
    return solve(sizes, hint=found, devices_bound=bound), solver_version()


def _placement(views: Views, found: _Found) -> Placement:
    problem, solution = views.problem, found.solution
    assert solution.assignment is not None
    chains_on: list[list[int]] = [[] for _ in found.cells]
    for chain, place_ in enumerate(solution.assignment):
        chains_on[place_].append(chain)
    used = [index for index, chains in enumerate(chains_on) if chains]
    instance_of = {index: number for number, index in enumerate(used)}
    return placement_of(
        views,
        [Filled(cell=found.cells[index], chains=tuple(chains_on[index])) for index in used],
        tuple(
            RouteEntry(chain=chain, alternatives=((instance_of[cell],),))
            for chain, cell in enumerate(solution.assignment)
        ),
        _solver_entry(problem, found),
    )


def _solver_entry(problem: PlaceProblem, found: _Found) -> SolverEntry:
    solution = found.solution
    assert solution.assignment is not None
    value = max(1, sum(len(found.cells[cell]) for cell in set(solution.assignment)))
    return SolverEntry(
        objective=("devices", "peak_load"),
        value=float(value),
        bound=float(min(solution.devices_bound, value)),
        gap=(value - min(solution.devices_bound, value)) / value,
        status="optimal" if solution.proven else "feasible",
        seed=problem.seed,
        solver=found.solver,
    )


def _report_gap(problem: PlaceProblem, solver: SolverEntry, diags: Diagnostics) -> None:
    if solver.gap > problem.gap:
        diags.report(
            "BC403",
            f"{_gap_text(solver)} is all that is proven (a gap of {100 * solver.gap:.1f} %)",
            at=problem.cluster_span,
            help="nothing more is tried with this many models, or where one takes several devices"
            if solver.solver.startswith(("greedy", "stages"))
            else "`gap` of the policy's `solver` says from which gap on a plan is good enough"
            if solver.history
            else "a higher `time_limit` of the policy's `solver` may find a better plan or prove this one",
        )


def _gap_text(solver: SolverEntry) -> str:
    """What a plan has of the first thing that the spec wants little of, and what is ruled out."""
    if solver.goal == "cost":
        return f"the plan costs {solver.value:.6g} an hour; that it costs at least {solver.bound:.6g}"
    if solver.goal == "devices":
        return f"the plan uses {solver.value:.0f} devices; that it needs more than {solver.bound - 1:.0f}"
    return f"the busiest cell is busy for {solver.value:.1%}; that it has to be for {solver.bound:.1%}"


def _report_limit(problem: PlaceProblem, diags: Diagnostics) -> None:
    diags.report(
        "BC402",
        f"no placement of {len(problem.chains)} models on {len(problem.devices)} devices was found, "
        f"with {float(problem.solver_time_limit_s):g} s for the solver, and none was ruled out",
        at=problem.cluster_span,
        help="raise `time_limit` of the policy's `solver`, or give the devices more memory",
    )


def _check_expectations(problem: PlaceProblem, memory: tuple[MemoryEntry, ...], diags: Diagnostics) -> None:
    for expect in problem.expect:
        for entry in memory:
            taken_bytes = entry.used_bytes - entry.reserve_bytes
            if taken_bytes < expect.memory_below_bytes:
                continue
            parts = (
                f"weights {format_bytes(entry.weights_bytes + entry.blocks_bytes)}, "
                f"fine-tunes {format_bytes(entry.sides_bytes)}, "
                f"KV cache {format_bytes(entry.kv_bytes)}, workspace {format_bytes(entry.workspace_bytes)}"
            )
            diags.report(
                "BC502",
                f"{problem.devices[entry.device].address} takes {format_bytes(taken_bytes)}, "
                f"expected less than {format_bytes(expect.memory_below_bytes)}",
                at=expect.span,
                notes=(parts,),
                help="the KV cache takes what the device offers up to `max_num_seqs` full sequences: lower that, "
                "`max_model_len` or the device's `memory`",
            )
