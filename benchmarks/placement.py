"""GPUs needed for four fleets under three policies: ``python -m benchmarks.placement [--json FILE] [I1 I2 ...]``.

The fleets of `benchmarks/placement_instances.py`, on A100s of 80 GB with the catalogue's rates, each placed by
`blockc.place` with the same effort whatever is shared: every model by itself (PM), adapters on shared bases (PS), equal
blocks once (ours). PM and PS get four times the cluster, so that what they need can be seen. Seconds are CPU seconds of
one process on one core, imports left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.placement_instances import INSTANCES, POLICIES, Instance, Policy, problem_of
from benchmarks.rates import origin
from blockc.diag import Diagnostics
from blockc.place import place
from blockc.place.evaluate import evaluate

_MORE = 4


def run(instance: Instance, policy: Policy) -> dict[str, Any]:
    """Place one fleet."""
    problem = problem_of(instance, policy, more_devices=1 if policy == "ours" else _MORE)
    start_s = time.process_time()
    placement = place(problem, diags=Diagnostics())
    took_s = time.process_time() - start_s
    assert placement is not None, f"{instance.name} {policy} has no placement"
    problems = evaluate(problem, placement)
    assert not problems, problems[0]
    solver = placement.solver
    loads = [item.load for item in placement.instances if item.load is not None]
    return {
        "instance": instance.name,
        "policy": policy,
        "segments": len(problem.segments),
        "gpus": int(solver.value),
        "bound": int(solver.bound),
        "bound_kind": solver.bound_kind,
        "gap": round(solver.gap, 4),
        "cells": {
            str(width): sum(len(item.devices) == width for item in placement.instances)
            for width in sorted({len(item.devices) for item in placement.instances})
        },
        "weights_gib": round(sum(entry.weights_bytes + entry.sides_bytes for entry in placement.memory) / 2**30, 1),
        "busiest": round(max(load.traffic + load.sweeps for load in loads), 4),
        "cpu_s": round(took_s, 2),
    }


def main() -> None:
    """Print a line for each fleet and policy; write them with ``--json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="fleets; all of them without")
    parser.add_argument("--json", type=Path, help="where results go")
    options = parser.parse_args()
    place(problem_of(INSTANCES[0], "ours"), diags=Diagnostics())  # imports the solver
    rows = []
    for instance in INSTANCES:
        for policy in POLICIES:
            if not options.names or instance.name in options.names:
                rows.append(run(instance, policy))
                print(json.dumps(rows[-1]), flush=True)
    if options.json is not None:
        fleets = {
            item.name: {"title": item.title, "requests_per_s": item.rate_rps, "bases": item.bases} for item in INSTANCES
        }
        document = {"origin": origin("benchmarks.placement"), "fleets": fleets, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
