"""Several fleets under several draws of one load: what differs between them, and how sure that is.

In: fleets, a function from a seed to a workload, a number of repetitions. Out: reports, and means with intervals of
95 % confidence by Student's t. Every fleet sees the same workloads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from blockc.simulate.fleet import Fleet
from blockc.simulate.parallel import in_processes
from blockc.simulate.report import Report, Targets, report
from blockc.simulate.simulate import Run, simulate
from blockc.simulate.workload import Workload

# Two-sided 95 % quantiles of Student's t by degrees of freedom; above 30 those of 30, which is a little too wide.
_T: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over repetitions, and half the width of its interval; None of a single one."""

    mean: float
    half_width: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStudy:
    """One fleet: a report for each seed, in order; its first run, if moments were to be kept."""

    reports: tuple[Report, ...]
    run: Run | None

    @property
    def figures(self) -> dict[str, Estimate]:
        """What is compared: latencies in seconds, rates, parts of one."""
        found: dict[str, list[float]] = {}
        for item in self.reports:
            for name, value in _figures(item).items():
                if value is not None:
                    found.setdefault(name, []).append(value)
        return {name: estimate(values) for name, values in found.items()}


def study(
    fleets: Sequence[Fleet],
    workload: Callable[[int], Workload],
    targets: Mapping[str, Targets],
    *,
    seed: int,
    repeats: int,
    keeps_moments: bool = False,
    jobs: int = 1,
) -> tuple[FleetStudy, ...]:
    """Run every fleet under the loads of the seeds ``seed .. seed + repeats - 1``, in ``jobs`` processes."""
    return study_each(
        [(fleet, workload) for fleet in fleets],
        targets,
        seed=seed,
        repeats=repeats,
        keeps_moments=keeps_moments,
        jobs=jobs,
    )


def study_each(
    cases: Sequence[tuple[Fleet, Callable[[int], Workload]]],
    targets: Mapping[str, Targets],
    *,
    seed: int,
    repeats: int,
    keeps_moments: bool = False,
    jobs: int = 1,
) -> tuple[FleetStudy, ...]:
    """As `study`, each fleet under a load of its own."""
    drawn: dict[tuple[Callable[[int], Workload], int], Workload] = {}
    for _, workload in cases:
        for number in range(seed, seed + repeats):
            if (workload, number) not in drawn:
                drawn[workload, number] = workload(number)
    runs = [(fleet, drawn[load, number], targets) for fleet, load in cases for number in range(seed, seed + repeats)]
    kept = simulate(runs[0][0], runs[0][1], keeps_moments=True) if keeps_moments else None
    reports = in_processes(_reported, runs, jobs=jobs)
    return tuple(
        FleetStudy(reports=tuple(reports[number * repeats : (number + 1) * repeats]), run=kept if number == 0 else None)
        for number in range(len(cases))
    )


def _reported(item: tuple[Fleet, Workload, Mapping[str, Targets]]) -> Report:
    fleet, load, targets = item
    return report(simulate(fleet, load), targets)


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of one sample."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Estimate(mean=mean, half_width=None)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean=mean, half_width=_T[min(count - 1, len(_T)) - 1] * math.sqrt(variance / count))


def _figures(item: Report) -> dict[str, float | None]:
    total = item.total
    found: dict[str, float | None] = {}
    for name, latency in (("ttft", total.ttft), ("tpot", total.tpot), ("e2e", total.e2e)):
        if latency is not None:
            found |= {f"{name}_p50_s": latency.p50_s, f"{name}_p95_s": latency.p95_s, f"{name}_p99_s": latency.p99_s}
    devices = max(1, item.devices)
    return {
        **found,
        "output_tokens_per_s": item.output_tokens_per_s,
        "attainment": total.attainment,
        "goodput_rps": total.goodput_rps if total.measured else None,
        "busy": sum(instance.busy * instance.width for instance in item.instances) / devices,
        "jain": item.jain,
    }
