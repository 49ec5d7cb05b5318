"""The traffic of a spec: loads that are drawn, and requests that came once (`arrival = trace("requests.csv")`).

In: a deployment, and the apps of its plan. Out: what draws the load of a seed. A trace that names apps is replayed for
those as it was recorded. Any other says how requests are spread and how long they are: each app takes it up at a place
of its own, which the seed draws, and goes on at its beginning. Where the spec gives a rate or an average number of
tokens, the trace is scaled to that. Invariant: the same spec, traces and seed give the same load, and an app's requests
do not change with those of others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from blockc.diag import Diagnostics
from blockc.simulate.generate import Load, generate, spec_loads
from blockc.simulate.traces import Trace, read_trace
from blockc.simulate.traces.row import MAX_TOKENS
from blockc.simulate.workload import Arrival, Workload
from blockc.spec.deployment import App, Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Requests of one app: ``gaps_s`` before each, and the tokens of each. ``is_its_own``: the trace names the app."""

    app: int
    gaps_s: tuple[float, ...]
    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    is_its_own: bool

    def arrivals(self, seconds: float, seed: int) -> list[Arrival]:
        """Those of the first ``seconds``. Another app's trace is never at an end; its own ends with its last row."""
        count = len(self.gaps_s)
        place = 0 if self.is_its_own else int(np.random.default_rng([seed, 3, self.app]).integers(count))
        found: list[Arrival] = []
        at_s = 0.0
        while not (self.is_its_own and len(found) == count):
            index = (place + len(found)) % count
            at_s += self.gaps_s[index]
            if at_s > seconds:
                break
            found.append(
                Arrival(at_s=at_s, app=self.app, prompt_tokens=self.prompts[index], output_tokens=self.outputs[index])
            )
        return found


def spec_draw(
    deployment: Deployment, addresses: Sequence[str], *, seconds: float, prompt_tokens: int, output_tokens: int,
    cv: float, turns: float, think_s: float, diags: Diagnostics,
) -> Callable[[int], Workload]:  # fmt: skip
    """The load of a seed. Reports what is wrong with a trace (BC003, BC503), and a spec without any load (BC108)."""
    recorded = recorded_apps(deployment, addresses, diags=diags)
    loads: tuple[Load, ...] = ()
    if not recorded or any(_is_drawn(app) for app in deployment.apps):
        loads = spec_loads(
            deployment, addresses, prompt_tokens=prompt_tokens, output_tokens=output_tokens, cv=cv, turns=turns,
            think_s=think_s, diags=diags,
        )  # fmt: skip

    def draw(seed: int) -> Workload:
        drawn = generate(loads, seconds=seconds, seed=seed)
        return with_recorded(drawn, [item for own in recorded for item in own.arrivals(seconds, seed)])

    return draw


def with_recorded(drawn: Workload, recorded: Sequence[Arrival]) -> Workload:
    """Both, by time; turns keep their place behind those that they follow."""
    if not recorded:
        return drawn
    starts = [(item.at_s, item.app, 0, index) for index, item in enumerate(drawn.arrivals) if item.after is None]
    starts += [(item.at_s, item.app, 1, index) for index, item in enumerate(recorded)]
    followers: dict[int, list[int]] = {}
    for index, item in enumerate(drawn.arrivals):
        if item.after is not None:
            followers.setdefault(item.after, []).append(index)
    arrivals: list[Arrival] = []
    for _, _, source, index in sorted(starts):
        if source:
            arrivals.append(recorded[index])
            continue
        pending: list[tuple[int, int | None]] = [(index, None)]
        while pending:
            number, after = pending.pop()
            item = drawn.arrivals[number]
            pending += [(follower, len(arrivals)) for follower in reversed(followers.get(number, []))]
            arrivals.append(item if after is None else replace(item, after=after))
    return replace(drawn, arrivals=tuple(arrivals), source=f"{drawn.source}, and traces")


def recorded_apps(deployment: Deployment, addresses: Sequence[str], *, diags: Diagnostics) -> tuple[Recorded, ...]:
    """The apps whose `arrival` is a trace. Each file is read once."""
    index = {address: number for number, address in enumerate(addresses)}
    traces: dict[Path, Trace] = {}
    found = []
    for app in deployment.apps:
        source = app.traffic.arrival_trace
        if source is None:
            continue
        if source.path not in traces:
            traces[source.path] = read_trace(source.path, diags=diags)
        found.append(_recorded(app, index[app.address], traces[source.path], diags))
    diags.raise_if_errors()
    return tuple(item for item in found if item is not None)


def _recorded(app: App, number: int, trace: Trace, diags: Diagnostics) -> Recorded | None:
    names_apps = any(row.app is not None for row in trace.rows)
    rows = [row for row in trace.rows if row.app == app.address] if names_apps else list(trace.rows)
    if not rows or (len(rows) < 2 and app.traffic.rate_rps is not None):
        diags.report(
            "BC503",
            f"{trace.file} has {len(rows)} requests for `{app.address}`",
            at=app.span,
            help="name a trace with requests of this app, or one without `app`, which any app may take up",
        )
        return None
    times = [row.at_s for row in rows]
    span_s = times[-1] - times[0]
    # Of a trace that goes on at its beginning the last request is followed by the first, one average gap later.
    average_s = span_s / (len(rows) - 1) if len(rows) > 1 else 0.0
    gaps = [average_s, *(late - early for early, late in itertools.pairwise(times))]
    if names_apps:
        gaps[0] = times[0]
    if app.traffic.rate_rps is not None and span_s > 0:
        scale = 1 / (float(app.traffic.rate_rps) * average_s)
        gaps = [gap * scale for gap in gaps]
    elif not names_apps and span_s == 0:
        diags.report(
            "BC503", f"all requests of {trace.file} come at once", at=app.span, help="say a `rate`, or name another"
        )
        return None
    return Recorded(
        app=number,
        gaps_s=tuple(gaps),
        prompts=_scaled([row.prompt_tokens for row in rows], app.traffic.prompt_tokens),
        outputs=_scaled([row.output_tokens for row in rows], app.traffic.output_tokens),
        is_its_own=names_apps,
    )


def _scaled(tokens: Sequence[int], mean: int | None) -> tuple[int, ...]:
    if mean is None:
        return tuple(tokens)
    factor = mean * len(tokens) / sum(tokens)
    return tuple(max(1, min(MAX_TOKENS, round(count * factor))) for count in tokens)


def _is_drawn(app: App) -> bool:
    return app.traffic.rate_rps is not None and app.traffic.arrival_trace is None


def has_load(deployment: Deployment) -> bool:
    """Whether the spec says what is asked of any app."""
    return any(_is_drawn(app) or app.traffic.arrival_trace is not None for app in deployment.apps)
