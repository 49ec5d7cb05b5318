"""How far the simulator is from the engine, on this machine: throughput, TTFT and TPOT under the same requests.

    python -m benchmarks.simulator_error --json benchmarks/results/sim-error.json      # a quiet machine, 11 minutes

Two shapes of random models are served by the engine proper in this process, its clock and torch included, under
requests that come at their time: Poisson, log-normal lengths, three parts of the rate at which a burst of them is
done. The simulator runs the same requests on the same plan, by two sorts of rates: the plan's ``own``, as `blockc
profile` measures them, and those of ``others``, fitted to the steps of two other shapes together. No request of a load
is in either.

What is the simulator's of an error, and what is the machine's:

- ``reference``: how long a fixed load of another model took beside this one (mean), of what it took while rates were
  measured (median). It *held* where that is within 5 %; each load runs twice, and once more if it has not held by then.
- ``steps``: what steps of a kind took in the load, of their prices.
- ``spread_percent``: how far runs of the engine under one load are apart. Less cannot be asked of a simulator.
- ``lever_percent``: how much a figure grows in the simulator where every step takes 5 % longer.
- ``waited_percent``: for how much of a load threads of the engine were ready and something else had the core.

Errors are given over all runs, over those that held, and with prices times ``reference``. ``--cpu-time`` goes by the
CPU time of one thread and skips waits: what else the machine does hardly counts, so it tells something on a busy one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Read when torch is imported: as the server sets them for its engine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch

from benchmarks.fleet import SHAPES, Shape, compiled_fleet
from benchmarks.rates import origin
from benchmarks.simulator_summary import errors, held, spread, summary, table
from benchmarks.timed_engine import Clock, Reference, TimedChannel, core_waits_s, figures, named, served
from blockc.cost import DeviceRates, PlanWork, StepPricer, plan_work
from blockc.cost.fit import Fit, Sample, fit_rates, price_s
from blockc.cost.rates import slower
from blockc.measure import measure
from blockc.plan import ExecutionPlan, load_plan
from blockc.simulate import Load, Workload, fleet_of, generate, power_law, report, simulate
from blockc.zoo import Zoo
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.memory import before_loading, before_serving
from blockc_runtime.native.library import kernels
from blockc_runtime.step import Executor

FITTED = {
    "narrow": Shape(hidden=384, layers=8, heads=6, kv_heads=3, intermediate=1024, vocab=8192),
    "wide": Shape(hidden=768, layers=6, heads=12, kv_heads=4, intermediate=2048, vocab=8192),
}
SCORED = {
    "small": SHAPES["small"],
    "deep": Shape(hidden=640, layers=10, heads=10, kv_heads=5, intermediate=1728, vocab=8192),
}
_ADAPTERS = 3
_PARTS = (0.3, 0.6, 0.85)
_PROMPT, _OUTPUT = 96, 24
# A load lasts until so many have come, however slow the machine is.
_LEAST_REQUESTS = 20
_RUNS, _RUNS_AT_MOST = 2, 3
_LONGER = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``budget_s``: of measuring one shape; ``seconds``: of one load."""

    budget_s: float = 35.0
    seconds: float = 20.0
    parts: tuple[float, ...] = _PARTS
    repeats: int = 3
    by_cpu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A shape that is loaded, and what the steps of its plan took.

    ``reference_s``: the median of what the reference took meanwhile, as rates are fitted to medians. A load takes the
    slow moments, too, so there the mean counts.
    """

    name: str
    plan: ExecutionPlan
    executor: TorchExecutor
    samples: tuple[Sample, ...]
    reference_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """A fit, and what the reference took while its steps were measured."""

    fit: Fit
    reference_s: float

    def beside(self, reference_s: float) -> float:
        """How much longer the reference took elsewhere."""
        return reference_s / self.reference_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The engine under a load, once. ``steps``: by kind, what they took of their price."""

    measured: dict[str, float]
    reference_s: float
    waited_percent: float
    busy_percent: float
    steps: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A load of a shape."""

    shape: str
    part: float
    rate_rps: float
    workload: Workload


def opened(path: Path) -> tuple[ExecutionPlan, TorchExecutor]:
    """A plan and its executor."""
    plan = load_plan(path)
    executor = TorchExecutor(plan, Zoo(path.parent / "zoo"), device="cpu")
    before_serving()
    return plan, executor


def measured(root: Path, name: str, shape: Shape, reference: Reference, settings: Settings) -> Fleet:
    """Load a shape and measure its steps."""
    plan, executor = opened(compiled_fleet(root / name, shape, _ADAPTERS))
    samples = measure(
        plan, executor, repeats=settings.repeats, budget_s=settings.budget_s, clock=reference.clock.now_s,
        on_load=lambda *_: reference.tick(),
    )  # fmt: skip
    reference_s = statistics.median(reference.taken())
    return Fleet(name=name, plan=plan, executor=executor, samples=samples, reference_s=reference_s)


def fitted(fleets: Sequence[Fleet]) -> Rates:
    """Rates by which the steps of all of these are told best."""
    samples: list[Sample] = []
    works: list[PlanWork] = []
    for fleet in fleets:
        samples += [_moved(sample, sum(len(work.chains) for work in works)) for sample in fleet.samples]
        works.append(plan_work(fleet.plan))
    reference_s = float(np.mean([fleet.reference_s for fleet in fleets]))
    return Rates(fit=fit_rates(samples, joined(works)), reference_s=reference_s)


def joined(works: Sequence[PlanWork]) -> PlanWork:
    """The work of several plans as that of one: chains and segments one after the other."""
    segments = tuple(segment for work in works for segment in work.segments)
    chains, first = [], 0
    for work in works:
        chains += [
            replace(chain, segments=tuple(first + segment for segment in chain.segments)) for chain in work.chains
        ]
        first += len(work.segments)
    return PlanWork(segments=segments, chains=tuple(chains))


def _moved(sample: Sample, chains: int) -> Sample:
    return replace(sample, rows=tuple(replace(row, chain=row.chain + chains) for row in sample.rows))


def load_of(plan: ExecutionPlan, rate_rps: float, seconds: float, seed: int) -> Workload:
    """Requests that fit the models, a power law over the apps."""
    longest = min(chain.max_model_len for chain in plan.chains)
    loads: Sequence[Load] = power_law(
        len(plan.apps), rate_rps=rate_rps, skew=0.5, prompt_tokens=_PROMPT, output_tokens=_OUTPUT
    )
    drawn = generate([replace(load, spread=0.6) for load in loads], seconds=seconds, seed=seed)
    return replace(
        drawn,
        arrivals=tuple(
            replace(item, prompt_tokens=min(item.prompt_tokens, longest // 2),
                    output_tokens=min(item.output_tokens, longest // 4))
            for item in drawn.arrivals
        ),
    )  # fmt: skip


def capacity_rps(plan: ExecutionPlan, rates: DeviceRates) -> float:
    """Requests a second that the fitted rates say the machine can do: of a burst of them."""
    burst = load_of(plan, 200.0, 2.0, seed=5)
    run = report(simulate(fleet_of(plan, {"cpu": rates}), burst), {})
    return run.total.requests / run.end_s


def cases_of(fleet: Fleet, rates: DeviceRates, settings: Settings) -> Iterator[Case]:
    """The loads of a shape."""
    most = capacity_rps(fleet.plan, rates)
    for number, part in enumerate(settings.parts):
        seconds = max(settings.seconds, _LEAST_REQUESTS / (part * most))
        workload = load_of(fleet.plan, part * most, seconds, seed=number)
        yield Case(shape=fleet.name, part=part, rate_rps=part * most, workload=workload)


def scored(fleet: Fleet, others: Rates, reference: Reference, settings: Settings) -> list[dict[str, Any]]:
    """A row for each load: what was measured, what was simulated, and how far the latter is off."""
    rates = {"own": fitted([fleet]), "others": others}
    cases = list(cases_of(fleet, rates["own"].fit.rates, settings))
    few = replace(cases[0].workload, arrivals=cases[0].workload.arrivals[:10])
    served(fleet.plan, fleet.executor, few, clock=reference.clock)  # warms up
    runs: list[list[Run]] = [[] for _ in cases]
    for turn in range(_RUNS_AT_MOST):  # loads take turns: what the machine does for a while falls on one run of each
        for case, own in zip(cases, runs, strict=True):
            if turn < _RUNS or not any(held(rates["own"].beside(run.reference_s)) for run in own):
                own.append(run_of(fleet.plan, fleet.executor, case, rates["own"].fit, reference))
                print(case.shape, case.part, json.dumps(own[-1].measured), own[-1].steps, flush=True)
    return [_row(fleet.plan, case, own, rates) for case, own in zip(cases, runs, strict=True)]


def run_of(plan: ExecutionPlan, executor: Executor, case: Case, fit: Fit, reference: Reference) -> Run:
    """Serve a load once."""
    reference.run()
    waited_s, began_s = core_waits_s(), time.monotonic()
    channel = served(plan, executor, case.workload, clock=reference.clock, reference=reference)
    waits = (core_waits_s() - waited_s) / (time.monotonic() - began_s)
    took_s = max(channel.end_s.values())
    return Run(
        measured=figures(channel, case.workload),
        reference_s=statistics.fmean(reference.taken()),
        waited_percent=round(100 * waits, 1),
        busy_percent=round(100 * sum(step.seconds for step in channel.steps) / took_s, 1),
        steps=of_prices(channel, StepPricer(plan_work(plan), fit.rates)),
    )


def of_prices(channel: TimedChannel, pricer: StepPricer) -> dict[str, float]:
    """What steps of each kind took, of what they were priced at: all of them together, so long ones count more."""
    took: dict[str, list[tuple[float, float]]] = {}
    for step in channel.steps:
        took.setdefault(step.kind, []).append((step.seconds, price_s(step, pricer)))
    return {kind: round(float(np.divide(*np.sum(own, axis=0))), 3) for kind, own in sorted(took.items())}


def _row(plan: ExecutionPlan, case: Case, runs: Sequence[Run], rates: dict[str, Rates]) -> dict[str, Any]:
    simulated = {name: simulated_figures(plan, own.fit.rates, case.workload) for name, own in rates.items()}
    longer = simulated_figures(plan, slower(rates["own"].fit.rates, _LONGER), case.workload)
    return {
        "shape": case.shape,
        "part": case.part,
        "requests": len(case.workload.arrivals),
        "requests_per_s": round(case.rate_rps, 2),
        "simulated": simulated,
        "lever_percent": errors(longer, simulated["own"]),
        "spread_percent": spread([run.measured for run in runs]),
        "runs": [
            {
                "measured": run.measured, "waited_percent": run.waited_percent, "busy_percent": run.busy_percent,
                "steps": run.steps, **{
                    name: _errors(plan, case, run, own, simulated[name]) for name, own in rates.items()
                },
            }
            for run in runs
        ],
    }  # fmt: skip


def _errors(plan: ExecutionPlan, case: Case, run: Run, rates: Rates, simulated: dict[str, float]) -> dict[str, Any]:
    reference = rates.beside(run.reference_s)
    at_its_speed = simulated_figures(plan, slower(rates.fit.rates, reference), case.workload)
    return {
        "reference": round(reference, 3),
        "error_percent": errors(simulated, run.measured),
        "error_at_speed_percent": errors(at_its_speed, run.measured),
    }


def simulated_figures(plan: ExecutionPlan, rates: DeviceRates, workload: Workload) -> dict[str, float]:
    """Of the simulator, for the same requests."""
    found = report(simulate(fleet_of(plan, {"cpu": rates}), workload), {})
    ttft, tpot = found.total.ttft, found.total.tpot
    assert ttft is not None
    assert tpot is not None
    return named(found.output_tokens_per_s, (ttft.p50_s, ttft.p95_s), (tpot.p50_s, tpot.p95_s))


def run(root: Path, fit_shapes: dict[str, Shape], score_shapes: dict[str, Shape], settings: Settings) -> dict[str, Any]:
    """Measure, fit, serve, simulate, compare."""
    before_loading()
    first, shape = next(iter(fit_shapes.items()))
    plan, executor = opened(compiled_fleet(root / first, shape, _ADAPTERS))
    reference = Reference(plan, executor, Clock(by_cpu=settings.by_cpu))
    reference.run()  # warms up
    reference.times_s.clear()
    fleets = []
    for name, shape in fit_shapes.items():
        fleets.append(measured(root, name, shape, reference, settings))
        fleets[-1].executor.close()
    others = fitted(fleets)
    fits, rows = {"others": _fit(others.fit)}, []
    for name, shape in score_shapes.items():
        fleet = measured(root, name, shape, reference, settings)
        fits[name] = _fit(fitted([fleet]).fit)
        rows += scored(fleet, others, reference, settings)
        fleet.executor.close()
    executor.close()
    return {"fits": fits, "rows": rows, "summary": summary(rows)}


def _fit(fit: Fit) -> dict[str, Any]:
    """How well it tells its own steps."""
    return {
        "samples": fit.samples, "error_p50": round(fit.error_p50, 3), "error_p95": round(fit.error_p95, 3),
        "bias": {kind: round(own.bias, 3) for kind, own in fit.kinds.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="keep the models here between runs")
    parser.add_argument("--seconds", type=float, default=Settings().seconds, help="of each load")
    parser.add_argument("--budget", type=float, default=Settings().budget_s, help="seconds of measuring each shape")
    parser.add_argument("--cpu-time", action="store_true", help="go by the CPU time of one thread, and skip waits")
    options = parser.parse_args()
    settings = Settings(seconds=options.seconds, budget_s=options.budget, by_cpu=options.cpu_time)
    if options.cpu_time:
        torch.set_num_threads(1)
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        found = run(options.work or Path(scratch), FITTED, SCORED, settings)
    own = kernels()
    found = {
        "origin": {**origin("benchmarks.simulator_error"), "kernels": None if own is None else own.level},
        **found, "took_s": round(time.perf_counter() - began_s),
    }  # fmt: skip
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
