"""BC401 and BC402: why nothing fits, who takes most, and the smallest changes that would help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from blockc.diag import Diagnostics, Label
from blockc.ir.layout import weights_bytes
from blockc.place.assign import assign, kv_minimum_bytes
from blockc.place.problem import PlaceChain, PlaceProblem

_GIB = 1 << 30
_MIB = 1 << 20
_CONTRIBUTORS = 3


def report_infeasible(problem: PlaceProblem, *, diags: Diagnostics) -> None:
    """Explain a problem that has no placement."""
    needed = _needed(problem.chains, problem)
    offered = sum(device.usable_bytes for device in problem.devices)
    largest = max(problem.devices, key=lambda device: device.usable_bytes)
    biggest = max(problem.chains, key=lambda chain: _needed([chain], problem))
    alone = _needed([biggest], problem)
    help_ = _relaxations(problem)
    if needed > offered:
        diags.report(
            "BC401",
            f"the plan needs at least {_size(needed)}, the devices offer {_size(offered)}",
            at=problem.cluster_span,
            label=f"{len(problem.devices)} device{'s' if len(problem.devices) > 1 else ''}",
            secondary=_contributors(problem),
            notes=(_breakdown(problem),),
            help=help_,
        )
    elif alone > largest.usable_bytes:
        diags.report(
            "BC401",
            f"`{biggest.models[0]}` needs {_size(alone)} on one device, the largest offers "
            f"{_size(largest.usable_bytes)}",
            at=biggest.span,
            label="a model stays on one device",
            secondary=(Label(span=largest.span, text="the largest device"),),
            help=help_,
        )
    else:
        diags.report(
            "BC401",
            f"the models fit the devices' {_size(offered)} together, but not device by device",
            at=problem.cluster_span,
            label="a model stays on one device, and what it shares is copied to each",
            secondary=_contributors(problem),
            help=help_,
        )


def _needed(chains: Sequence[PlaceChain], problem: PlaceProblem) -> int:
    """Bytes of these chains on one device with room for one sequence of each KV layout."""
    layouts: dict[tuple[int, ...], int] = {}
    for chain in chains:
        layouts[chain.groups] = max(layouts.get(chain.groups, 0), kv_minimum_bytes(chain, problem))
    weights = weights_bytes(form for chain in chains for form in chain.weights)
    return weights + sum(chain.sides_bytes for chain in chains) + sum(layouts.values()) + problem.workspace_bytes


def _contributors(problem: PlaceProblem) -> tuple[Label, ...]:
    """Whose removal would free most."""
    total = _needed(problem.chains, problem)
    freed = []
    for chain in problem.chains:
        others = [other for other in problem.chains if other is not chain]
        freed.append((total - _needed(others, problem) if others else total, chain))
    freed.sort(key=lambda item: (-item[0], item[1].models))
    return tuple(
        Label(span=chain.span, text=f"{_size(size)} that no other model shares")
        for size, chain in freed[:_CONTRIBUTORS]
        if size > 0
    )


def _breakdown(problem: PlaceProblem) -> str:
    weights = weights_bytes(form for chain in problem.chains for form in chain.weights)
    sides = sum(chain.sides_bytes for chain in problem.chains)
    rest = _needed(problem.chains, problem) - weights - sides - problem.workspace_bytes
    return (
        f"weights {_size(weights)}, adapters {_size(sides)}, KV pages of one full sequence {_size(rest)}, "
        f"activations {_size(problem.workspace_bytes)}"
    )


def _relaxations(problem: PlaceProblem) -> str:
    """The smallest memory of the devices, and the longest sequences, with which there is a placement."""
    found: list[str] = []
    low = max(device.usable_bytes for device in problem.devices)
    high = max(2 * low, 2 * _needed(problem.chains, problem))
    reserve = max(device.reserve_bytes for device in problem.devices)
    memory = _smallest(low, high, lambda size: _feasible(_with_memory(problem, size)))
    if memory is not None:
        found.append(f"`memory = {_round_up(memory + reserve)}` on each device")
    longest = max(chain.max_model_len for chain in problem.chains)
    shorter = _smallest(0, longest, lambda cut: _feasible(_with_length(problem, max(1, longest - cut))))
    if shorter is not None and longest - shorter >= 16:
        found.append(f"`max_model_len = {longest - shorter}`")
    return f"smallest relaxation: {'; or '.join(found)}" if found else "add devices, or remove apps"


def _smallest(low: int, high: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number in ``(low, high]`` that holds, by bisection to a 256th of the range."""
    if not holds(high):
        return None
    step = max(1, (high - low) // 256)
    while high - low > step:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _feasible(problem: PlaceProblem) -> bool:
    try:
        return assign(problem) is not None
    except TimeoutError:
        return False


def _with_memory(problem: PlaceProblem, usable_bytes: int) -> PlaceProblem:
    devices = tuple(
        replace(device, memory_bytes=max(device.memory_bytes, usable_bytes + device.reserve_bytes))
        for device in problem.devices
    )
    return replace(problem, devices=devices)


def _with_length(problem: PlaceProblem, length: int) -> PlaceProblem:
    chains = tuple(replace(chain, max_model_len=min(chain.max_model_len, length)) for chain in problem.chains)
    return replace(problem, chains=chains)


def _round_up(size_bytes: int) -> str:
    """In the unit that a person would write."""
    unit, name = (_GIB, "GiB") if size_bytes >= 8 * _GIB else (_MIB, "MiB")
    return f"{-(-size_bytes // unit)}{name}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:.1f} MiB"
