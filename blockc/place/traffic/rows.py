"""Cells that have no room for as many requests at once as their load will have (BC406).

In: a problem and its placement. Out: a warning for the fullest of them. A cell's time is planned as if its segments ran
once in a cadence; with `max_num_seqs` rows at most, tokens that come faster than so many in a cadence need faster
steps, whose sweeps nobody has counted. How many there will be at once: a step takes its sweep and what traffic adds to
it, ``s = sweep / (1 - traffic)``, and of the tokens of a second as many are in a step as come while it runs (Little).
The sum of both errs on the long side, as everywhere in `times`.
"""

from __future__ import annotations

import math
from typing import Final

from blockc.diag import Diagnostics
from blockc.place.problem import PlaceProblem
from blockc.place.tables import Placement

# More than the average, so that a burst finds a place.
_MARGIN: Final = 1.5


def expected_rows(problem: PlaceProblem, placement: Placement, number: int) -> float:
    """Requests that decode at once in an instance, on average; 0 where nothing is expected."""
    instance = placement.instances[number]
    load = instance.load
    if load is None or load.cadence_s is None or instance.stages:
        return 0.0
    tokens_per_s = sum(
        placement.routes[chain].shares.get(number, 0.0) * float(own.rate_rps * own.output_tokens)
        for chain in instance.chains
        if (own := problem.chains[chain].load) is not None
    )
    return tokens_per_s * load.sweeps * load.cadence_s / (1 - min(0.99, load.traffic))


def report_rows(problem: PlaceProblem, placement: Placement, diags: Diagnostics) -> None:
    """Warn of the instance that is furthest beyond what a step takes."""
    rows = {number: expected_rows(problem, placement, number) for number in range(len(placement.instances))}
    number = max(rows, key=lambda item: (rows[item], -item), default=None)
    if number is None or rows[number] <= problem.max_rows:
        return
    instance = placement.instances[number]
    spans = [own.span for chain in instance.chains if (own := problem.chains[chain].load) is not None]
    over = sum(found > problem.max_rows for found in rows.values())
    enough = 1 << math.ceil(math.log2(_MARGIN * rows[number]))
    diags.report(
        "BC406",
        f"about {math.ceil(rows[number])} requests at once are expected on "
        f"{problem.devices[instance.devices[0]].address}, of which a step takes {problem.max_rows}",
        at=problem.max_rows_span or next((span for span in spans if span is not None), None),
        notes=(f"so on {over} of {len(rows)} instances; who has no place waits, and steps come faster than planned",),
        help=f"`batching {{ max_num_seqs = {enough} }}` makes room; `blockc simulate` shows what waiting does",
    )
