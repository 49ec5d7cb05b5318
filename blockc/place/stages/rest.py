"""The problem that is left when some chains and devices are spoken for.

In: a problem, chains and devices to leave out. Out: a problem with the others, in their order. Rules and what was there
before speak of what is left of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from blockc.cost import PlanWork
from blockc.place.problem import BeforeCell, PlaceBefore, PlaceProblem, PlaceRule


def kept(count: int, without: Collection[int]) -> tuple[int, ...]:
    """Numbers that stay: new to old."""
    return tuple(number for number in range(count) if number not in without)


def rest_of(problem: PlaceProblem, chains: Collection[int], devices: Collection[int]) -> PlaceProblem:
    """Leave them out."""
    chain_of = {old: new for new, old in enumerate(kept(len(problem.chains), chains))}
    device_of = {old: new for new, old in enumerate(kept(len(problem.devices), devices))}
    work = problem.work
    return replace(
        problem,
        devices=tuple(problem.devices[old] for old in device_of),
        chains=tuple(problem.chains[old] for old in chain_of),
        work=None
        if work is None
        else PlanWork(segments=work.segments, chains=tuple(work.chains[old] for old in chain_of)),
        rules=tuple(rule for own in problem.rules if (rule := _rule(own, chain_of, device_of)).chains),
        before=None if problem.before is None else _before(problem.before, chain_of, device_of),
        stages=None,
        sheds=None if problem.sheds else False,  # whose load is left out first is a question to all of them
    )


def _rule(rule: PlaceRule, chain_of: dict[int, int], device_of: dict[int, int]) -> PlaceRule:
    return replace(
        rule,
        chains=tuple(chain_of[chain] for chain in rule.chains if chain in chain_of),
        devices=frozenset(device_of[device] for device in rule.devices if device in device_of),
    )


def _before(before: PlaceBefore, chain_of: dict[int, int], device_of: dict[int, int]) -> PlaceBefore:
    return PlaceBefore(
        cells=tuple(
            BeforeCell(
                devices=tuple(device_of[device] for device in cell.devices),
                chains=tuple((chain_of[chain], part) for chain, part in cell.chains if chain in chain_of),
            )
            for cell in before.cells
            if all(device in device_of for device in cell.devices)
        ),
        tensors={device_of[device]: own for device, own in before.tensors.items() if device in device_of},
        chains={
            device_of[device]: frozenset(chain_of[chain] for chain in own if chain in chain_of)
            for device, own in before.chains.items()
            if device in device_of
        },
        widths={device_of[device]: width for device, width in before.widths.items() if device in device_of},
        parts={device_of[device]: part for device, part in before.parts.items() if device in device_of},
    )
