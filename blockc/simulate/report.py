"""What a run was like for each app, in figures.

In: a run, and the targets of each app. Out: latencies, rates, fairness. TTFT: from a request's arrival to its first
token. TPOT: from there to its last one, divided by the tokens after the first. End to end: from arrival to last token.
A request is *good* if it meets every target of its app; goodput counts good ones for each second of the trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from blockc.cost import TICKS_PER_S
from blockc.simulate.instance import Served
from blockc.simulate.moves import LOST
from blockc.simulate.simulate import Run
from blockc.spec.deployment import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Seconds that a request may take; None: as long as it likes."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @property
    def is_any(self) -> bool:
        """Whether there is a target at all."""
        return (self.ttft_s, self.tpot_s, self.e2e_s) != (None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds. NaN-free: None where there is no request to measure."""

    p50_s: float
    p95_s: float
    p99_s: float
    mean_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AppReport:
    """One app, or all together (``address`` is then ``*``).

    ``measured``: requests of apps that have targets; ``good``: those of them that met theirs.

    ``refused``: requests that could never run, or whose instance failed. ``cached_tokens``: of prompts, found in place
    of computed. ``moved``: times that one went to another instance while it was under way. ``sent_bytes``: KV that went
    from instance to instance.
    """

    address: str
    requests: int
    refused: int
    ttft: Latency | None
    tpot: Latency | None
    e2e: Latency | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    measured: int
    good: int
    goodput_rps: float
    moved: int = 0
    sent_bytes: int = 0

    @property
    def attainment(self) -> float | None:
        """The part of its measured requests that are good, which refused ones are not."""
        return self.good / self.measured if self.measured else None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceReport:
    """``busy``: part of the time in which a step ran. ``mean_rows``: of a step, by time.

    ``side_loads``: fine-tunes that were put in a slot, where they take turns; ``block_loads``: segments whose weights
    were read, where those do. ``stages``: of a pipeline,
    whose ``busy`` is the mean of its stages; ``hop_bytes``: hidden states that went from stage to stage.
    """

    name: str
    width: int
    busy: float
    mean_rows: float
    steps: int
    tokens: int
    preemptions: int
    side_loads: int
    block_loads: int = 0
    stages: int = 0
    hop_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed:
    """An app for whose load the plan has a place in part only (`overload = shed`): for ``served`` of it.

    ``requests``: so many of the others were left out; None: none were, all of the load was run.
    """

    address: str
    served: float
    requests: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run.

    ``jain``: Jain's index over tenants of the part that each had been given of what it had asked for, when the last
    request of the trace came: 1 if all had got the same part, 1/n if one had got everything. ``routed``: as in `Run`.
    ``moved``: hand-overs by why they were, ``moved_bytes``: KV that went with them. ``lost``: requests refused because
    an instance failed. ``shed``: apps whose load has no place in full.
    """

    label: str
    source: str
    devices: int
    weights_bytes: int
    horizon_s: float
    end_s: float
    total: AppReport
    apps: tuple[AppReport, ...]
    instances: tuple[InstanceReport, ...]
    output_tokens_per_s: float
    jain: float
    routed: tuple[tuple[str, int], ...]
    moved: tuple[tuple[str, int], ...]
    moved_bytes: int
    lost: int
    left_out: tuple[tuple[str, int], ...]
    shed: tuple[Shed, ...] = ()


def targets_of(deployment: Deployment) -> dict[str, Targets]:
    """What each app of a spec asks for: of several percentiles of one measure, the highest one's target."""
    found = {}
    for app in deployment.apps:
        slo = {name: float(value) for name, value in app.slo.targets_s.items()}
        highest = {
            measure: next(
                (slo[f"{measure}_{p}"] for p in ("p99", "p95", "p90", "p50") if f"{measure}_{p}" in slo), None
            )
            for measure in ("ttft", "tpot", "e2e")
        }
        found[app.address] = Targets(ttft_s=highest["ttft"], tpot_s=highest["tpot"], e2e_s=highest["e2e"])
    return found


def report(run: Run, targets: Mapping[str, Targets]) -> Report:
    """Measure a run. ``targets``: by an app's address; apps that are not there have none."""
    by_app: list[list[Served]] = [[] for _ in run.fleet.apps]
    for served in run.served:
        by_app[run.workload.arrivals[served.number].app].append(served)
    horizon_s = run.horizon / TICKS_PER_S
    moved = Counter(run.workload.arrivals[item.number].app for item in run.hand_overs)
    apps = tuple(
        replace(
            _app(run, app.address, own, targets.get(app.address, Targets()), horizon_s),
            moved=moved[number],
            sent_bytes=run.sent_bytes[number],
        )
        for number, (app, own) in enumerate(zip(run.fleet.apps, by_app, strict=True))
    )
    end_s = max((served.end for served in run.served), default=0) / TICKS_PER_S
    total = replace(
        _app(run, "*", run.served, Targets(), horizon_s),
        measured=sum(app.measured for app in apps),
        good=sum(app.good for app in apps),
        goodput_rps=sum(app.goodput_rps for app in apps),
        moved=len(run.hand_overs),
        sent_bytes=sum(run.sent_bytes),
    )
    return Report(
        label=run.fleet.label,
        source=run.workload.source,
        devices=run.fleet.devices,
        weights_bytes=run.fleet.weights_bytes,
        horizon_s=horizon_s,
        end_s=end_s,
        total=total,
        apps=apps,
        instances=tuple(
            InstanceReport(
                name=item.name,
                width=item.width,
                busy=_part(item.totals.busy, end_s * TICKS_PER_S),
                mean_rows=_part(item.totals.row_time, item.totals.busy),
                steps=item.totals.steps,
                tokens=item.totals.tokens,
                preemptions=item.preemptions,
                side_loads=item.side_loads,
                block_loads=item.block_loads,
                stages=item.stages,
                hop_bytes=item.hop_bytes,
            )
            for item in run.instances
        ),
        output_tokens_per_s=_part(total.output_tokens, end_s),
        jain=_fairness(run),
        routed=tuple(run.routed.items()),
        moved=tuple(sorted(Counter(item.why for item in run.hand_overs).items())),
        moved_bytes=sum(item.nbytes for item in run.hand_overs),
        lost=sum(item.refusal == LOST for item in run.served),
        left_out=run.workload.left_out,
        shed=tuple(
            Shed(address=app.address, served=app.served, requests=shed)
            for app, shed in zip(run.fleet.apps, run.workload.shed or (None,) * len(run.fleet.apps), strict=True)
            if app.served < 1
        ),
    )


def meets(run: Run, served: Served, targets: Targets) -> bool:
    """Whether a request got its tokens in time."""
    if served.first is None or served.refusal is not None:
        return False
    arrived = run.arrived[served.number]
    measured = (
        (targets.ttft_s, served.first - arrived),
        (targets.tpot_s, (served.end - served.first) / max(1, served.tokens - 1)),
        (targets.e2e_s, served.end - arrived),
    )
    return all(target is None or taken <= target * TICKS_PER_S for target, taken in measured)


def jain_index(shares: Sequence[float]) -> float:
    """Jain, Chiu, Hawe (1984): the square of the sum over n times the sum of squares; 1 where nobody got anything."""
    squares = sum(share * share for share in shares)
    return 1.0 if not squares else sum(shares) ** 2 / (len(shares) * squares)


def _app(run: Run, address: str, own: Sequence[Served], targets: Targets, horizon_s: float) -> AppReport:
    answered = [item for item in own if item.first is not None]
    first = np.array([item.first for item in answered], dtype=float)
    end = np.array([item.end for item in answered], dtype=float)
    arrived = np.array([run.arrived[item.number] for item in answered], dtype=float)
    tokens = np.array([item.tokens for item in answered])
    later = tokens > 1
    good = sum(meets(run, item, targets) for item in own) if targets.is_any else 0
    return AppReport(
        address=address,
        requests=len(own),
        refused=sum(item.refusal is not None for item in own),
        ttft=_latency(first - arrived),
        tpot=_latency((end - first)[later] / (tokens[later] - 1)),
        e2e=_latency(end - arrived),
        prompt_tokens=sum(run.workload.arrivals[item.number].prompt_tokens for item in answered),
        output_tokens=int(tokens.sum()),
        cached_tokens=sum(item.cached_tokens for item in answered),
        measured=len(own) if targets.is_any else 0,
        good=good,
        goodput_rps=_part(good, horizon_s),
    )


def _latency(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Latency | None:
    if not len(values):
        return None
    p50, p95, p99 = np.percentile(values, (50, 95, 99)) / TICKS_PER_S
    return Latency(p50_s=float(p50), p95_s=float(p95), p99_s=float(p99), mean_s=float(values.mean() / TICKS_PER_S))


def _fairness(run: Run) -> float:
    asked: dict[str, int] = {}
    given: dict[str, int] = {}
    refused = {item.number for item in run.served if item.refusal is not None}
    for number, item in enumerate(run.workload.arrivals):
        if run.arrived[number] <= run.horizon and number not in refused:
            tenant = run.fleet.apps[item.app].tenant
            asked[tenant] = asked.get(tenant, 0) + item.output_tokens
    for app, tokens in zip(run.fleet.apps, run.by_horizon, strict=True):
        given[app.tenant] = given.get(app.tenant, 0) + tokens
    return jain_index([given[tenant] / tokens for tenant, tokens in sorted(asked.items()) if tokens])


def _part(some: float, whole: float) -> float:
    return some / whole if whole else 0.0
