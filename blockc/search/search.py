"""Turn one knob after the other, as long as that helps.

In: a policy, and a function that judges one. Out: every try in order, and the best. From the spec's own values each
knob is turned to its next value up and down as long as things get better, then the next one; until a round changes
nothing, or so many tries were made. Invariant: the same question has the same answer; no policy is tried twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockc.search.knobs import Knob
from blockc.simulate import Report
from blockc.spec.deployment import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """``report`` None: there is no such plan, for the reason that ``problem`` tells."""

    policy: Policy
    report: Report | None
    problem: str | None = None

    @property
    def score(self) -> tuple[float, ...]:
        """Less is better: requests refused, then those out of time, then how long answers take; no plan is worst."""
        if self.report is None:
            return (1.0,)
        total = self.report.total
        late = 0.0 if total.attainment is None else 1 - total.attainment
        return (0.0, total.refused, round(late, 4), 0.0 if total.e2e is None else total.e2e.p95_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Tries in order, the spec's own values first. ``is_done``: no single turn of a knob would be better."""

    tried: tuple[Tried, ...]
    best: Tried
    is_done: bool


class _OutOfTriesError(Exception):
    """So many were made."""


def search(policy: Policy, knobs: Sequence[Knob], judge: Callable[[Policy], Tried], *, tries: int) -> Found:
    """Search. ``tries``: at most, the spec's own values included."""
    known: dict[tuple[int, ...], Tried] = {}

    def look(at: Policy) -> Tried:
        key = tuple(knob.read(at) for knob in knobs)
        if key not in known:
            if len(known) >= tries:
                raise _OutOfTriesError
            known[key] = judge(at)
        return known[key]

    best = look(policy)
    is_done = False
    try:
        while not is_done:
            before = best
            for knob in knobs:
                best = _turned(knob, best, look)
            is_done = best is before
    except _OutOfTriesError:
        best = min(known.values(), key=lambda item: item.score)
    return Found(tried=tuple(known.values()), best=best, is_done=is_done)


def _turned(knob: Knob, best: Tried, look: Callable[[Policy], Tried]) -> Tried:
    for step in (1, -1):
        start = best
        while True:
            place = knob.values.index(knob.read(best.policy)) + step
            if not 0 <= place < len(knob.values):
                break
            other = look(knob.turned(best.policy, knob.values[place]))
            if other.score >= best.score:
                break
            best = other
        if best is not start:
            return best
    return best
