"""Placement: instances on devices with their KV pages, and how far that is from optimal.

In: a ``PlaceProblem``. Out: a ``Placement``, or None with BC401, BC402 or BC502 reported. Invariant: what is resident
on a device, counted by ``Layout``, fits its memory less its reserve, and every chain there can hold at least one
sequence of full length.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from blockc.diag import Diagnostics
from blockc.ir.layout import weights_bytes
from blockc.place.assign import SEED, Assignment, assign
from blockc.place.infeasible import report_infeasible
from blockc.place.problem import PlaceChain, PlaceProblem
from blockc.plan import BaselineEntry, InstanceEntry, MemoryEntry, RouteEntry, SolverEntry

_OBJECTIVE = ("devices", "even load")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The tables of the plan that placement decides."""

    instances: tuple[InstanceEntry, ...]
    routes: tuple[RouteEntry, ...]
    memory: tuple[MemoryEntry, ...]
    baselines: BaselineEntry
    solver: SolverEntry


def place(problem: PlaceProblem, *, diags: Diagnostics) -> Placement | None:
    """Decide. None if an error was reported."""
    try:
        assignment = assign(problem)
    except TimeoutError:
        diags.report(
            "BC402",
            "no placement was found within the solver's limit",
            at=problem.cluster_span,
            help="add memory or devices, or remove apps, until the problem is less tight",
        )
        return None
    if assignment is None:
        report_infeasible(problem, diags=diags)
        return None
    used = sorted(set(assignment.device_of))
    instances = tuple(_instance(problem, assignment, device) for device in used)
    memory = tuple(_memory(problem, instance, device) for instance, device in zip(instances, used, strict=True))
    _judge(problem, memory, diags=diags)
    return Placement(
        instances=instances,
        routes=tuple(
            RouteEntry(chain=chain, alternatives=((used.index(device),),))
            for chain, device in enumerate(assignment.device_of)
        ),
        memory=memory,
        baselines=BaselineEntry(pm_bytes=problem.pm_bytes, ps_bytes=problem.ps_bytes, ours_bytes=problem.ours_bytes),
        solver=SolverEntry(
            objective=_OBJECTIVE,
            value=assignment.value,
            bound=assignment.bound,
            gap=(assignment.value - assignment.bound) / assignment.value,
            status=assignment.status,
            seed=SEED,
            solver=f"ortools {version('ortools')} CP-SAT",
        ),
    )


def _instance(problem: PlaceProblem, assignment: Assignment, device: int) -> InstanceEntry:
    chains = tuple(chain for chain, own in enumerate(assignment.device_of) if own == device)
    members = [problem.chains[chain] for chain in chains]
    free = problem.devices[device].usable_bytes - problem.workspace_bytes - _weights(members) - _sides(members)
    return InstanceEntry(
        segments=tuple(sorted({segment for chain in members for segment in chain.segments})),
        devices=(device,),
        chains=chains,
        max_rows=problem.max_rows,
        kv_pages=_kv_pages(problem, members, free),
    )


def _kv_pages(problem: PlaceProblem, chains: list[PlaceChain], free_bytes: int) -> dict[int, int]:
    """Room for as many sequences of full length as run at once, or equal shares of what there is."""
    one: dict[int, int] = {}  # pages of one full sequence
    for chain in chains:
        for group in chain.groups:
            pages = -(-chain.max_model_len // problem.groups[group].page_tokens)
            one[group] = max(one.get(group, 0), pages)
    wanted_bytes = sum(pages * problem.groups[group].page_bytes for group, pages in one.items())
    sequences = min(problem.max_rows, free_bytes / wanted_bytes)
    return {group: max(pages, int(sequences * pages)) for group, pages in sorted(one.items())}


def _memory(problem: PlaceProblem, instance: InstanceEntry, device: int) -> MemoryEntry:
    members = [problem.chains[chain] for chain in instance.chains]
    return MemoryEntry(
        device=device,
        weights_bytes=_weights(members),
        sides_bytes=_sides(members),
        kv_bytes=sum(pages * problem.groups[group].page_bytes for group, pages in instance.kv_pages.items()),
        workspace_bytes=problem.workspace_bytes,
        reserve_bytes=problem.devices[device].reserve_bytes,
        capacity_bytes=problem.devices[device].memory_bytes,
    )


def _weights(chains: list[PlaceChain]) -> int:
    return weights_bytes(form for chain in chains for form in chain.weights)


def _sides(chains: list[PlaceChain]) -> int:
    return sum(chain.sides_bytes for chain in chains)


def _judge(problem: PlaceProblem, memory: tuple[MemoryEntry, ...], *, diags: Diagnostics) -> None:
    """The spec's ``expect { memory_below }``: of every device, the reserve left out."""
    for limit, span in problem.memory_below:
        for entry in memory:
            used = entry.used_bytes - entry.reserve_bytes
            if used >= limit:
                diags.report(
                    "BC502",
                    f"{problem.devices[entry.device].address} takes {used:,} bytes, expected below {limit:,}",
                    at=span,
                    notes=(f"of these {entry.kv_bytes:,} bytes are KV pages",),
                    help="lower `max_num_seqs` or `max_model_len`, or raise the expectation",
                )
