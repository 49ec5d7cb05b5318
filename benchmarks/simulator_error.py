"""How far the simulator is from the engine, on this machine: throughput, TTFT and TPOT under the same requests.

    python -m benchmarks.simulator_error --json benchmarks/results/sim-error.json      # a quiet machine, 6 minutes

Steps of two shapes of random models are measured, and rates fitted to them together (`blockc profile` does so for one
plan). Two other shapes are then served by the engine proper in this process, its clock and torch included, under
requests that come at their time: Poisson, log-normal lengths, three parts of what the fitted rates say that the machine
can do. The simulator runs the same requests on the same plan by the fitted rates. Nothing of a shape that is scored, or
of its requests, is in the fit.

``waited_percent`` says whether the machine was quiet: for how much of a load's time threads of the engine were ready to
run and something else had the core. Where it is more than a few, errors are the machine's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# Read when torch is imported: as the server sets them for its engine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np

from benchmarks.fleet import SHAPES, Shape, compiled_fleet
from benchmarks.rates import origin
from blockc.cost import DeviceRates, PlanWork, plan_work
from blockc.cost.fit import Fit, Sample, fit_rates
from blockc.measure import measure
from blockc.plan import ExecutionPlan, load_plan
from blockc.simulate import Load, Workload, fleet_of, generate, power_law, report, simulate
from blockc.simulate.workload import Arrival
from blockc.zoo import Zoo
from blockc_runtime.engine import Engine
from blockc_runtime.epoch import Epoch
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import engine_limits
from blockc_runtime.memory import before_loading, before_serving
from blockc_runtime.request import Request, Sampling
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import Executor
from blockc_runtime.wire.messages import Drain, End, Message, Submit, Tokens

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
_GREEDY = Sampling()
# A load lasts until so many have come, however slow the machine is.
_LEAST_REQUESTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``budget_s``: of measuring one shape; ``seconds``: of one load."""

    budget_s: float = 25.0
    seconds: float = 20.0
    parts: tuple[float, ...] = _PARTS
    repeats: int = 3


@dataclass(slots=True)
class TimedChannel:
    """In place of the server's socket: hands requests out when their time has come, then asks for the end."""

    waiting: list[tuple[float, Request]]  # seconds from the start, the next one last
    start_s: float = field(default_factory=time.monotonic)
    first_s: dict[str, float] = field(default_factory=dict)
    end_s: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def receive(self, wait_s: float | None) -> list[Message]:
        """What has come; waits for the next one as long as that."""
        now_s = time.monotonic() - self.start_s
        if self.waiting and self.waiting[-1][0] > now_s and wait_s != 0.0:
            until_s = self.waiting[-1][0] - now_s
            time.sleep(until_s if wait_s is None else min(wait_s, until_s))
            now_s = time.monotonic() - self.start_s
        found: list[Message] = []
        while self.waiting and self.waiting[-1][0] <= now_s:
            found.append(Submit(request=self.waiting.pop()[1]))
        return found if self.waiting else [*found, Drain()]

    def send(self, *messages: Message) -> None:
        """Note when what is due came."""
        now_s = time.monotonic() - self.start_s
        for message in messages:
            if isinstance(message, Tokens):
                for event in message.events:
                    self.first_s.setdefault(event.request, now_s)
                    self.tokens[event.request] = self.tokens.get(event.request, 0) + len(event.tokens)
            elif isinstance(message, End):
                self.end_s |= {event.request: now_s for event in message.events}
                self.refused |= {event.request for event in message.events if event.reason == "error"}


def fitted(root: Path, shapes: dict[str, Shape], settings: Settings) -> Fit:
    """Rates by which the steps of all these shapes are told best."""
    samples: list[Sample] = []
    works: list[PlanWork] = []
    for name, shape in shapes.items():
        path = compiled_fleet(root / name, shape, _ADAPTERS)
        plan = load_plan(path)
        executor = TorchExecutor(plan, Zoo(path.parent / "zoo"), device="cpu")
        before_serving()
        try:
            found = measure(plan, executor, repeats=settings.repeats, budget_s=settings.budget_s)
        finally:
            executor.close()
        samples += [_moved(sample, sum(len(work.chains) for work in works)) for sample in found]
        works.append(plan_work(plan))
    return fit_rates(samples, joined(works))


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


def served(plan: ExecutionPlan, executor: Executor, workload: Workload) -> TimedChannel:
    """The engine under the requests of a workload, in real time."""
    random = np.random.default_rng(0)
    requests = [(item.at_s, _request(plan, number, item, random)) for number, item in enumerate(workload.arrivals)]
    limits = engine_limits(plan)
    channel = TimedChannel(waiting=sorted(requests, key=lambda entry: -entry[0]))
    first = Epoch(number=0, scheduler=Scheduler(limits, KvIndex(limits)), executor=executor)
    Engine(channel=channel, first=first).run()  # type: ignore[arg-type]
    return channel


def _request(plan: ExecutionPlan, number: int, item: Arrival, random: np.random.Generator) -> Request:
    app = plan.apps[item.app]
    vocab = plan.chains[app.chain].vocab_size
    return Request(
        id=str(number),
        app=item.app,
        chain=app.chain,
        isolation_group=app.isolation_group,
        prompt=tuple(int(token) for token in random.integers(3, vocab, item.prompt_tokens)),
        emitted=0,
        max_tokens=item.output_tokens,
        stop_token_ids=(),
        sampling=_GREEDY,
    )


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


def scored(root: Path, name: str, shape: Shape, rates: DeviceRates, settings: Settings) -> list[dict[str, Any]]:
    """A row for each load: what was measured, what was simulated, and how far the latter is off."""
    path = compiled_fleet(root / name, shape, _ADAPTERS)
    plan = load_plan(path)
    executor = TorchExecutor(plan, Zoo(path.parent / "zoo"), device="cpu")
    before_serving()
    found = []
    try:
        most = capacity_rps(plan, rates)
        served(plan, executor, load_of(plan, most / 2, min(3.0, settings.seconds), seed=9))  # warms up
        for number, part in enumerate(settings.parts):
            seconds = max(settings.seconds, _LEAST_REQUESTS / (part * most))
            workload = load_of(plan, part * most, seconds, seed=number)
            simulated = simulated_figures(plan, rates, workload)
            waited_s = core_waits_s()
            channel = served(plan, executor, workload)
            waited_s = core_waits_s() - waited_s
            measured = figures(channel, workload)
            row = {"shape": name, "part": part, "requests_per_s": round(part * most, 2), "measured": measured}
            row |= {"waited_percent": round(100 * waited_s / max(channel.end_s.values()), 1)}
            row |= {"simulated": simulated, "error_percent": errors(simulated, measured)}
            print(json.dumps(row), flush=True)
            found.append(row)
    finally:
        executor.close()
    return found


def core_waits_s() -> float:
    """How long threads of this process have waited for a core since they began; 0 where the system does not say."""
    waits_ns = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            waits_ns += int(thread.read_text().split()[1])
    return waits_ns / 1e9


def figures(channel: TimedChannel, workload: Workload) -> dict[str, float]:
    """Of a run of the engine, as `blockc.simulate.report` defines them."""
    ended = [str(number) for number in range(len(workload.arrivals)) if str(number) not in channel.refused]
    ttft = [channel.first_s[name] - workload.arrivals[int(name)].at_s for name in ended]
    tpot = [
        (channel.end_s[name] - channel.first_s[name]) / (channel.tokens[name] - 1)
        for name in ended
        if channel.tokens[name] > 1
    ]
    tokens = sum(channel.tokens[name] for name in ended)
    return _named(tokens / max(channel.end_s.values()), np.percentile(ttft, (50, 95)), np.percentile(tpot, (50, 95)))


def simulated_figures(plan: ExecutionPlan, rates: DeviceRates, workload: Workload) -> dict[str, float]:
    """Of the simulator, for the same requests."""
    found = report(simulate(fleet_of(plan, {"cpu": rates}), workload), {})
    ttft, tpot = found.total.ttft, found.total.tpot
    assert ttft is not None
    assert tpot is not None
    return _named(found.output_tokens_per_s, (ttft.p50_s, ttft.p95_s), (tpot.p50_s, tpot.p95_s))


def _named(tokens_per_s: float, ttft: Sequence[float], tpot: Sequence[float]) -> dict[str, float]:
    return {
        "tokens_per_s": round(float(tokens_per_s), 2),
        "ttft_p50_ms": round(1000 * float(ttft[0]), 2),
        "ttft_p95_ms": round(1000 * float(ttft[1]), 2),
        "tpot_p50_ms": round(1000 * float(tpot[0]), 3),
        "tpot_p95_ms": round(1000 * float(tpot[1]), 3),
    }


def errors(simulated: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """In percent of what was measured."""
    return {name: round(100 * (simulated[name] / value - 1), 1) for name, value in measured.items()}


def run(root: Path, fit_shapes: dict[str, Shape], score_shapes: dict[str, Shape], settings: Settings) -> dict[str, Any]:
    """Measure, fit, serve, simulate, compare."""
    before_loading()
    fit = fitted(root, fit_shapes, settings)
    print(f"fitted: half of {fit.samples} steps within {100 * fit.error_p50:.1f} %, 95 % {100 * fit.error_p95:.1f} %")
    rows = [row for name, shape in score_shapes.items() for row in scored(root, name, shape, fit.rates, settings)]
    sizes = [abs(error) for row in rows for error in row["error_percent"].values()]
    return {
        "fit": {"shapes": sorted(fit_shapes), "samples": fit.samples, "error_p50": fit.error_p50,
                "error_p95": fit.error_p95},
        "rows": rows,
        "mean_error_percent": round(float(np.mean(sizes)), 1),
        "median_error_percent": round(float(np.median(sizes)), 1),
        "largest_error_percent": round(max(sizes), 1),
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """The errors, a line for each load."""
    names = list(found["rows"][0]["error_percent"])
    lines = ["shape     load  " + "  ".join(f"{name:>12}" for name in names) + "        waited"]
    for row in found["rows"]:
        cells = "  ".join(f"{row['error_percent'][name]:+11.1f}%" for name in names)
        lines.append(f"{row['shape']:8}  {row['part']:4.2f}  {cells}  {row['waited_percent']:11.1f}%")
    lines.append(f"mean {found['mean_error_percent']} %, median {found['median_error_percent']} %")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="keep the models here between runs")
    parser.add_argument("--seconds", type=float, default=Settings().seconds, help="of each load")
    parser.add_argument("--budget", type=float, default=Settings().budget_s, help="seconds of measuring each shape")
    options = parser.parse_args()
    settings = Settings(seconds=options.seconds, budget_s=options.budget)
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        found = run(options.work or Path(scratch), FITTED, SCORED, settings)
    found = {"origin": origin("benchmarks.simulator_error"), **found, "took_s": round(time.perf_counter() - began_s)}
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
