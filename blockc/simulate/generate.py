"""Workloads that nobody recorded: arrivals, lengths, tenants and conversations drawn from a seed.

In: what the load is to be. Out: a workload. Gaps are exponential, or gamma with another coefficient of variation;
numbers of tokens are log-normal with a coefficient of variation of 1, about what chat traces have. Invariant: the same
load and seed give the same workload, and an app's requests do not change with those of others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blockc.diag import Diagnostics
from blockc.simulate.workload import Arrival, Workload
from blockc.spec.deployment import Deployment

_LONGEST_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one app is asked.

    ``cv``: coefficient of variation of the gaps between conversations (1: Poisson). ``turns``: of a conversation, on
    average (1: none has a second one); ``think_s``: between an answer and the next turn, on average. ``spread``: of the
    numbers of tokens, relative to their mean; 0: all are equal.
    """

    app: int
    rate_rps: float
    prompt_tokens: int
    output_tokens: int
    cv: float = 1.0
    turns: float = 1.0
    think_s: float = 10.0
    spread: float = 1.0


def power_law(
    apps: int, *, rate_rps: float, skew: float, prompt_tokens: int, output_tokens: int, cv: float = 1.0,
    turns: float = 1.0, think_s: float = 10.0,
) -> tuple[Load, ...]:  # fmt: skip
    """``rate_rps`` over all apps; app k gets a share of ``(k + 1) ** -skew``."""
    weights = [(1 + number) ** -skew for number in range(apps)]
    return tuple(
        Load(
            app=number, rate_rps=rate_rps * weight / sum(weights), prompt_tokens=prompt_tokens,
            output_tokens=output_tokens, cv=cv, turns=turns, think_s=think_s,
        )
        for number, weight in enumerate(weights)
    )  # fmt: skip


def generate(loads: Sequence[Load], *, seconds: float, seed: int, source: str = "generated") -> Workload:
    """Draw what comes in the first ``seconds``; conversations that began go on to their ends."""
    firsts: list[tuple[float, int, int]] = []
    talks: list[list[Arrival]] = []
    for load in loads:
        random = np.random.default_rng([seed, 2, load.app])
        for at_s in _starts(load, seconds, random):
            firsts.append((at_s, load.app, len(talks)))
            talks.append(_talk(load, at_s, random))
    arrivals: list[Arrival] = []
    for _, _, talk in sorted(firsts):
        first = len(arrivals)
        for turn, item in enumerate(talks[talk]):
            arrivals.append(_following(item, first + turn - 1) if turn else item)
    return Workload(arrivals=tuple(arrivals), source=f"{source}, seed {seed}")


def _starts(load: Load, seconds: float, random: np.random.Generator) -> list[float]:
    """When conversations begin."""
    if load.rate_rps <= 0:
        return []
    gap_s = load.turns / load.rate_rps
    shape = 1 / load.cv**2
    found: list[float] = []
    at_s = 0.0
    while True:
        at_s += float(random.gamma(shape, gap_s / shape))
        if at_s >= seconds:
            return found
        found.append(at_s)


def _talk(load: Load, at_s: float, random: np.random.Generator) -> list[Arrival]:
    """The turns of one conversation: each prompt holds all that was said before."""
    turns = int(random.geometric(1 / load.turns))
    said = 0
    talk = []
    for turn in range(turns):
        prompt = said + _tokens(load.prompt_tokens, load.spread, random)
        output = _tokens(load.output_tokens, load.spread, random)
        when_s = at_s if turn == 0 else float(random.exponential(load.think_s))
        talk.append(Arrival(at_s=when_s, app=load.app, prompt_tokens=prompt, output_tokens=output))
        said = prompt + output
    return talk


def _following(item: Arrival, after: int) -> Arrival:
    return Arrival(
        at_s=item.at_s,
        app=item.app,
        prompt_tokens=item.prompt_tokens,
        output_tokens=item.output_tokens,
        after=after,
    )


def _tokens(mean: int, spread: float, random: np.random.Generator) -> int:
    variance = math.log1p(spread**2)
    drawn = float(random.lognormal(math.log(mean) - variance / 2, math.sqrt(variance)))
    return max(1, min(_LONGEST_TOKENS, round(drawn)))


def spec_loads(
    deployment: Deployment, addresses: Sequence[str], *, prompt_tokens: int, output_tokens: int, cv: float,
    turns: float, think_s: float, diags: Diagnostics,
) -> tuple[Load, ...]:  # fmt: skip
    """The `traffic` of a spec's apps, by their index among ``addresses``. Reports a spec without any (BC108)."""
    index = {address: number for number, address in enumerate(addresses)}
    loads = tuple(
        Load(
            app=index[app.address],
            rate_rps=float(app.traffic.rate_rps),
            prompt_tokens=app.traffic.prompt_tokens or prompt_tokens,
            output_tokens=app.traffic.output_tokens or output_tokens,
            cv=cv if app.traffic.arrival_cv is None else float(app.traffic.arrival_cv),
            turns=turns,
            think_s=think_s,
        )
        for app in deployment.apps
        if app.traffic.rate_rps is not None and app.traffic.arrival_trace is None
    )
    if not loads:
        diags.report(
            "BC108",
            "no app has a `traffic { rate = ... }`, so there is no load to simulate",
            at=deployment.apps[0].span if deployment.apps else None,
            help="say what is expected, such as `traffic { rate = 8rps }`, or give `--trace` or `--rate`",
        )
        diags.raise_if_errors()
    return loads
