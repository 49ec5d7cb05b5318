"""How long simulations take, in CPU seconds of one core: an hour of recorded requests, and a million of them.

    python -m benchmarks.simulator_speed conv.csv --million --json benchmarks/results/sim-speed.json

Twenty apps of a Llama-3-8B on one H100 (`benchmarks.simulated_load`), the Azure conversation trace as it was recorded:
with pages counted, as they are where no prompt begins as another does, and with every page named; then the trace over
and over until a million requests have come. Steps are those of the simulated engine, events what they were folded to.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rates import origin
from benchmarks.simulated_load import compiled
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan
from blockc.simulate import Fleet, Spread, Workload, fleet_of, rates_of, read_trace, simulate, workload_of
from blockc.simulate.traces import Trace

_MILLION = 1_000_000


def repeated(trace: Trace, requests: int) -> Trace:
    """The trace over and over, until so many requests have come."""
    hour_s = trace.rows[-1].at_s
    rows = []
    turn = 0
    while len(rows) < requests:
        rows += [replace(row, at_s=row.at_s + turn * hour_s) for row in trace.rows[: requests - len(rows)]]
        turn += 1
    return replace(trace, rows=tuple(rows))


def load_of(plan: ExecutionPlan, trace: Trace) -> Workload:
    """Apps by a power law."""
    return workload_of(trace, [app.address for app in plan.apps], Spread(), diags=Diagnostics())


def timed(fleet: Fleet, load: Workload, *, counts: bool) -> dict[str, Any]:
    """One run."""
    start_s = time.process_time()
    run = simulate(fleet, load, counts=counts)
    cpu_s = time.process_time() - start_s
    totals = run.instances[0].totals
    return {
        "requests": len(load.arrivals),
        "pages": "counted" if counts else "named",
        "cpu_s": round(cpu_s, 1),
        "us_a_request": round(1e6 * cpu_s / len(load.arrivals)),
        "steps": totals.steps,
        "events": totals.events,
        "tokens": totals.tokens,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("trace", type=Path)
    parser.add_argument("--device", default="h100_80g")
    parser.add_argument("--million", action="store_true", help="a million requests, too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    plan = compiled(options.device)
    diags = Diagnostics()
    fleet = fleet_of(plan, rates_of(plan, diags=diags))
    diags.raise_if_errors()
    trace = read_trace(options.trace, diags=diags)
    hour = load_of(plan, trace)
    rows = [timed(fleet, hour, counts=True), timed(fleet, hour, counts=False)]
    if options.million:
        rows.append(timed(fleet, load_of(plan, repeated(trace, _MILLION)), counts=True))
    for row in rows:
        print(json.dumps(row))
    if options.json:
        document = {"origin": origin("benchmarks.simulator_speed"), "device": options.device, "runs": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
