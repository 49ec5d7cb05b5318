"""Cells that step faster than targets ask for, because each step has room for few requests (BC406).

In: a problem and its placement. Out: a warning for the one that loses most by it. A sweep is paid for each step, so
what few places cost is counted where cells are packed; a spec that says how many can have more for little memory.
"""

from __future__ import annotations

import math
from typing import Final

from blockc.diag import Diagnostics
from blockc.place.problem import PlaceProblem
from blockc.place.tables import Placement
from blockc.place.traffic.times import cadence_s, decoded_per_s

# Of a cell's time: what is worth a word.
_LEAST_LOST: Final = 0.05


def lost_to_full_steps(problem: PlaceProblem, placement: Placement, number: int) -> tuple[float, int]:
    """The part of an instance's time, and the places in a step with which none would be lost; 0 and 0 if none is."""
    instance = placement.instances[number]
    said = instance.load
    loads = {chain: load for chain in instance.chains if (load := problem.chains[chain].load) is not None}
    if said is None or said.cadence_s is None or not loads:
        return 0.0, 0
    target_s = min(map(cadence_s, loads.values()))
    tokens_per_s = sum(
        placement.routes[chain].shares.get(number, 0.0) * decoded_per_s(load) for chain, load in loads.items()
    )
    rows = tokens_per_s * target_s
    if rows <= problem.max_rows:
        return 0.0, 0
    return said.sweeps * (1 - problem.max_rows / rows), 1 << math.ceil(math.log2(rows))


def report_rows(problem: PlaceProblem, placement: Placement, diags: Diagnostics) -> None:
    """Warn of the instance that loses most."""
    lost = [lost_to_full_steps(problem, placement, number) for number in range(len(placement.instances))]
    number = max(range(len(lost)), key=lambda item: (lost[item], -item), default=None)
    if number is None or lost[number][0] < _LEAST_LOST:
        return
    instance = placement.instances[number]
    assert instance.load is not None
    assert instance.load.cadence_s is not None
    spans = [own.span for chain in instance.chains if (own := problem.chains[chain].load) is not None]
    over = sum(part >= _LEAST_LOST for part, _ in lost)
    diags.report(
        "BC406",
        f"{problem.devices[instance.devices[0]].address} has to step every {1000 * instance.load.cadence_s:.3g} ms, "
        f"faster than targets ask for, because a step takes {problem.max_rows} requests",
        at=problem.max_rows_span or next((span for span in spans if span is not None), None),
        notes=(f"{lost[number][0]:.0%} of its time goes into sweeps for that; so on {over} of {len(lost)} instances",),
        help=f"with `batching {{ max_num_seqs = {lost[number][1]} }}` no step is too full; it costs workspace",
    )
