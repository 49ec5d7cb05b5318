"""What errors of the simulator come to, over all runs and over those in which the host held its speed.

In: rows of `benchmarks.simulator_error`. Out: sizes of errors in percent, and a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

HELD = 0.05


def held(reference: float) -> bool:
    """Whether the host was as fast as it was when rates were measured."""
    return abs(reference - 1) <= HELD


def errors(simulated: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """In percent of what was measured."""
    return {name: round(100 * (simulated[name] / value - 1), 1) for name, value in measured.items()}


def spread(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """How far the furthest two runs are apart, in percent of their median."""
    found = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: round(100 * (max(own) - min(own)) / float(np.median(own)), 1) for name, own in found.items()}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sizes of errors of latencies and of throughput: of all runs, of those that held, with prices at their speed."""
    found: dict[str, Any] = {}
    for rates in ("own", "others"):
        runs = [run[rates] for row in rows for run in row["runs"]]
        found[rates] = {
            "all": _sizes([run["error_percent"] for run in runs]),
            "held": _sizes([run["error_percent"] for run in runs if held(run["reference"])]),
            "at_speed": _sizes([run["error_at_speed_percent"] for run in runs]),
        }
    return {**found, "spread": _sizes([row["spread_percent"] for row in rows])}


def _sizes(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    latencies = [abs(error) for own in found for name, error in own.items() if name != "tokens_per_s"]
    if not latencies:
        return {"runs": 0}
    return {
        "runs": len(found),
        "median_percent": round(float(np.median(latencies)), 1),
        "mean_percent": round(float(np.mean(latencies)), 1),
        "largest_percent": max(latencies),
        "throughput_largest_percent": max(abs(own["tokens_per_s"]) for own in found),
    }


def table(found: dict[str, Any]) -> str:
    """The errors by the plan's own rates, a line for each run; then what all come to."""
    names = list(found["rows"][0]["spread_percent"])
    head = "".join(f"{name:>14}" for name in names)
    lines = [f"shape     load{head}   reference   waited"]
    for row in found["rows"]:
        for run in row["runs"]:
            cells = "".join(f"{run['own']['error_percent'][name]:+13.1f}%" for name in names)
            beside = f"{run['own']['reference']:10.3f} {run['waited_percent']:7.1f}%"
            lines.append(f"{row['shape']:8}  {row['part']:4.2f}{cells}  {beside}")
        for label, key in (("spread", "spread_percent"), ("lever", "lever_percent")):
            lines.append(f"  {label:12}" + "".join(f"{row[key][name]:+13.1f}%" for name in names))
    for rates in ("own", "others"):
        for label, own in found["summary"][rates].items():
            if own["runs"]:
                lines.append(
                    f"{rates:6} {label:8} {own['runs']:2} runs: latencies median {own['median_percent']} %, mean "
                    f"{own['mean_percent']} %, largest {own['largest_percent']} %"
                )
    return "\n".join(lines)
