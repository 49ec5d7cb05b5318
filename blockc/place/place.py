"""Decide where every chain runs and how many KV pages it may use.

In: a :class:`PlaceProblem`. Out: a :class:`Placement`, or None with the reason reported. A chain runs wholly on one
device; a segment that chains on several devices pass is resident on each of them. Invariant: pure and seeded, and
every device's memory entry is a `Layout` that fits it.
"""

from __future__ import annotations

from dataclasses import dataclass

from blockc.diag import Diagnostics
from blockc.ir.layout import format_bytes
from blockc.place.bound import devices_bound
from blockc.place.cpsat import Solution, fits_solver, solve, solver_version
from blockc.place.explain import explain_infeasible
from blockc.place.greedy import Assignment, greedy
from blockc.place.pages import share_pages
from blockc.place.problem import PlaceProblem
from blockc.place.sizes import Sizes, sizes_of
from blockc.plan import BaselineEntry, InstanceEntry, MemoryEntry, RouteEntry, SolverEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The tables of the plan that placement decides. Instances and memory entries are in order of device."""

    instances: tuple[InstanceEntry, ...]
    routes: tuple[RouteEntry, ...]
    memory: tuple[MemoryEntry, ...]
    baselines: BaselineEntry
    solver: SolverEntry


def place(problem: PlaceProblem, *, diags: Diagnostics) -> Placement | None:
    """Place all chains. None exactly if an error was reported (BC401, BC402)."""
    sizes = sizes_of(problem)
    solution, solver = _assign(sizes)
    if solution.assignment is None:
        if solution.infeasible or devices_bound(sizes) > len(problem.devices):
            explain_infeasible(sizes, diags=diags)
        else:
            _report_limit(problem, diags)
        return None
    placement = _placement(sizes, solution, solver)
    _report_gap(problem, placement.solver, diags)
    _check_expectations(problem, placement.memory, diags)
    return placement


def _assign(sizes: Sizes) -> tuple[Solution, str]:
    """An assignment and the name of what found it. One device leaves nothing to choose."""
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


def _placement(sizes: Sizes, solution: Solution, solver: str) -> Placement:
    problem = sizes.problem
    assert solution.assignment is not None
    assignment = solution.assignment
    instances: list[InstanceEntry] = []
    memory: list[MemoryEntry] = []
    for index, device in enumerate(problem.devices):
        chains = [chain for chain, place_ in enumerate(assignment) if place_ == index]
        pages = share_pages(sizes, chains, offered_bytes=device.offered_bytes)
        used = sizes.layout(chains, pages, reserve_bytes=device.reserve_bytes)
        assert used.used_bytes <= device.memory_bytes, "a placement must fit the memory that it was made for"
        memory.append(
            MemoryEntry(
                device=index,
                weights_bytes=used.weights_bytes,
                sides_bytes=used.sides_bytes,
                kv_bytes=used.kv_bytes,
                workspace_bytes=used.workspace_bytes,
                reserve_bytes=used.reserve_bytes,
                capacity_bytes=device.memory_bytes,
            )
        )
        if chains:
            segments = {segment for chain in chains for segment in problem.chains[chain].segments}
            instances.append(
                InstanceEntry(
                    segments=tuple(sorted(segments)),
                    devices=(index,),
                    chains=tuple(chains),
                    max_rows=problem.max_rows,
                    kv_pages=pages,
                )
            )
    return Placement(
        instances=tuple(instances),
        routes=_routes(instances, assignment),
        memory=tuple(memory),
        baselines=BaselineEntry(pm_bytes=problem.pm_bytes, ps_bytes=problem.ps_bytes, ours_bytes=problem.ours_bytes),
        solver=_solver_entry(problem, solution, solver),
    )


def _routes(instances: list[InstanceEntry], assignment: Assignment) -> tuple[RouteEntry, ...]:
    on_device = {instance.devices[0]: number for number, instance in enumerate(instances)}
    return tuple(RouteEntry(chain=chain, alternatives=((on_device[d],),)) for chain, d in enumerate(assignment))


def _solver_entry(problem: PlaceProblem, solution: Solution, solver: str) -> SolverEntry:
    assert solution.assignment is not None
    value = max(1, len(set(solution.assignment)))
    return SolverEntry(
        objective=("devices", "peak_load"),
        value=float(value),
        bound=float(min(solution.devices_bound, value)),
        gap=(value - min(solution.devices_bound, value)) / value,
        status="optimal" if solution.proven else "feasible",
        seed=problem.seed,
        solver=solver,
    )


def _report_gap(problem: PlaceProblem, solver: SolverEntry, diags: Diagnostics) -> None:
    if solver.gap:
        diags.report(
            "BC403",
            f"the plan uses {solver.value:.0f} devices; that it needs more than {solver.bound - 1:.0f} is all that "
            f"is proven (a gap of {100 * solver.gap:.1f} %)",
            at=problem.cluster_span,
            help="a higher `time_limit` of the policy's `solver` may find a better plan or prove this one",
        )


def _report_limit(problem: PlaceProblem, diags: Diagnostics) -> None:
    diags.report(
        "BC402",
        f"no placement of {len(problem.chains)} models on {len(problem.devices)} devices was found in "
        f"{float(problem.solver_time_limit_s):g} s, and none was ruled out",
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
                f"weights {format_bytes(entry.weights_bytes)}, fine-tunes {format_bytes(entry.sides_bytes)}, "
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
