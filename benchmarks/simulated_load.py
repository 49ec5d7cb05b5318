"""Twenty apps under an hour of recorded requests: this plan beside models on their own and LoRA sharing only.

    python -m benchmarks.simulated_load conv.csv --device h100_80g

Nothing runs on a device: 16 LoRAs of rank 16 and four fine-tunes of the upper four layers of a Llama-3-8B are compiled
without weights and simulated (`docs/simulate.md`). The trace is the Azure conversation trace of 2023 (19,366 requests;
github.com/Azure/AzurePublicDataset), which blockc does not ship; apps are drawn by a power law. For each arrangement:
what it needs, what users see at several times the recorded rate, and the highest rate at which 99 % of the requests are
within the targets, found by halving.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rates import origin
from blockc.cli.compile import compile_file
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan
from blockc.simulate import (
    Fleet,
    Report,
    Spread,
    Targets,
    Workload,
    faster,
    first,
    fleet_of,
    rates_of,
    read_trace,
    report,
    simulate,
    workload_of,
)
from blockc.simulate.baselines import baseline

_MODEL = Path(__file__).parent.parent / "specs" / "models" / "llama-3-8b"
_SPEC = """
base b : hf("{model}") {{ dtype = bf16  max_model_len = 8192 }}
for i in 0..15 {{ finetune "l${{i}}" : b {{ assume {{ kind = lora  rank = 16  targets = ["all-linear"] }} }} }}
for i in 0..3 {{ finetune "f${{i}}" : b {{ assume {{ kind = full  changed_layers = 28..31 }} }} }}
cluster c {{ node n {{ device g0 : {device} {{ reserve = 6% }} }} }}
for i in 0..15 {{ tenant "t${{i}}" {{ app chat {{ model = "l${{i}}" }} }} }}
for i in 0..3 {{ tenant "u${{i}}" {{ app chat {{ model = "f${{i}}" }} }} }}
"""
_SPEEDS = (0.5, 1.0, 1.5)
_WITHIN = 0.99
# Of the hour, for the search: enough for a queue to show.
_SEARCH_S = 600.0


def compiled(device: str) -> ExecutionPlan:
    """The plan of twenty apps."""
    with tempfile.TemporaryDirectory() as directory:
        spec = Path(directory) / "fleet.blk"
        spec.write_text(_SPEC.format(model=_MODEL, device=device))
        return compile_file(spec, Path(directory) / "zoo", {}, target="sim")[0].plan


def fleets_of(plan: ExecutionPlan) -> list[Fleet]:
    """Ours, and the baselines that arrange memory otherwise."""
    diags = Diagnostics()
    rates = rates_of(plan, diags=diags)
    others = [baseline(name, plan, rates, diags=diags) for name in ("pm", "ps")]
    diags.raise_if_errors()
    return [fleet_of(plan, rates), *(fleet for fleet in others if fleet is not None)]


def capacity(fleet: Fleet, load: Workload, targets: dict[str, Targets]) -> float:
    """The highest speed, within 5 %, at which enough requests are in time."""
    low, high = 0.0, 1.0
    while _holds(fleet, load, targets, high) and high < 64:
        low, high = high, high * 2
    while high - low > 0.05 * high and high > 0.01:
        middle = (low + high) / 2
        if _holds(fleet, load, targets, middle):
            low = middle
        else:
            high = middle
    return low


def _holds(fleet: Fleet, load: Workload, targets: dict[str, Targets], speed: float) -> bool:
    found = report(simulate(fleet, first(faster(load, speed), _SEARCH_S / speed)), targets).total.attainment
    return found is not None and found >= _WITHIN


def _row(found: Report, speed: float, took_s: float) -> dict[str, Any]:
    total = found.total
    assert total.ttft is not None
    assert total.tpot is not None
    assert total.e2e is not None
    return {
        "speed": speed,
        "ttft_p95_ms": round(1000 * total.ttft.p95_s, 1),
        "tpot_p95_ms": round(1000 * total.tpot.p95_s, 1),
        "end_p95_s": round(total.e2e.p95_s, 2),
        "in_time": round(total.attainment or 0.0, 4),
        "tokens_per_s": round(found.output_tokens_per_s),
        "mean_rows": round(sum(item.mean_rows for item in found.instances) / len(found.instances), 1),
        "simulated_in_s": round(took_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", type=Path)
    parser.add_argument("--device", default="h100_80g")
    parser.add_argument("--ttft", type=float, default=1.0)
    parser.add_argument("--tpot", type=float, default=0.05)
    parser.add_argument("--skip-capacity", action="store_true")
    options = parser.parse_args()
    plan = compiled(options.device)
    targets = {app.address: Targets(ttft_s=options.ttft, tpot_s=options.tpot) for app in plan.apps}
    diags = Diagnostics()
    trace = read_trace(options.trace, diags=diags)
    load = workload_of(trace, [app.address for app in plan.apps], Spread(), diags=diags)
    results = []
    for fleet in fleets_of(plan):
        rows = []
        for speed in _SPEEDS:
            start_s = time.process_time()
            found = report(simulate(fleet, faster(load, speed)), targets)
            rows.append(_row(found, speed, time.process_time() - start_s))
            print(fleet.label, fleet.devices, json.dumps(rows[-1]), flush=True)
        results.append(
            {
                "label": fleet.label,
                "devices": fleet.devices,
                "weights_gib": round(fleet.weights_bytes / 2**30, 1),
                "runs": rows,
                "capacity": None if options.skip_capacity else round(capacity(fleet, load, targets), 3),
            }
        )
        print(fleet.label, "holds at", results[-1]["capacity"], "times the recorded rate", flush=True)
    settings = {"device": options.device, "ttft_s": options.ttft, "tpot_s": options.tpot, "within": _WITHIN}
    print(json.dumps({"origin": origin("benchmarks.simulated_load"), **settings, "fleets": results}, indent=1))


if __name__ == "__main__":
    main()
