"""The lines of a spec that placement has to keep to, and the problem without some of them.

In: a problem. Out: its lines; packings in which only some of them hold. Memory and time are physics and always hold:
without its rate a chain is still there, and nothing is expected of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, Literal

from blockc.diag import Span
from blockc.place.cells import Views
from blockc.place.problem import PlaceDevice, PlaceProblem
from blockc.place.traffic.flat import MOST_DEVICES
from blockc.place.traffic.packing import PARTS, Packing
from blockc.place.traffic.times import BUSY_LIMITS
from blockc.place.traffic.units import packing_of

# A target that is left out is so many times what it was: what is in flight stays what it was, too.
_SLOWER: Final = 20
_ENDLESS_ROWS: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """``index``: of the chain (``rate``, ``slo``) or the rule; ``devices`` is the cluster. ``text``: in words."""

    kind: Literal["rate", "slo", "rule", "headroom", "rows", "devices"]
    index: int
    text: str
    span: Span | None


def lines_of(problem: PlaceProblem) -> list[Line]:
    """All, in the order in which they are tried to be left out: rules first, so that cores name loads."""
    found = []
    for number, chain in enumerate(problem.chains):
        if chain.load is None:
            continue
        load = chain.load
        if load.tpot_s is not None or load.ttft_s is not None:
            targets = [f"a token every {milliseconds(load.tpot_s)}"] if load.tpot_s is not None else []
            targets += [f"the first within {milliseconds(load.ttft_s)}"] if load.ttft_s is not None else []
            text = f"`{chain.label}`: {', '.join(targets)}"
            found.append(Line(kind="slo", index=number, text=text, span=load.slo_span or chain.span))
    for number, rule in enumerate(problem.rules):
        found.append(Line(kind="rule", index=number, text=rule.text, span=rule.span))
    if problem.headroom:
        text = f"{100 * float(problem.headroom):.3g} % of every device left free"
        found.append(Line(kind="headroom", index=0, text=text, span=problem.headroom_span or problem.cluster_span))
    if problem.max_rows_span is not None:
        text = f"at most {problem.max_rows} requests in a step"
        found.append(Line(kind="rows", index=0, text=text, span=problem.max_rows_span))
    count = len(problem.devices)
    text = f"{count} device{'' if count == 1 else 's'}"
    found.append(Line(kind="devices", index=0, text=text, span=problem.cluster_span))
    for number, chain in enumerate(problem.chains):
        if chain.load is not None:
            load = chain.load
            text = (
                f"`{chain.label}`: {float(load.rate_rps):.3g} requests/s of {float(load.prompt_tokens):.0f} "
                f"and {float(load.output_tokens):.0f} tokens"
            )
            found.append(Line(kind="rate", index=number, text=text, span=load.span or chain.span))
    return found


def milliseconds(seconds: Fraction | float) -> str:
    """As diagnostics say them."""
    return f"{1000 * float(seconds):.3g} ms"


def packing_with(views: Views, kept: Iterable[Line]) -> Packing:
    """Only these lines hold."""
    problem = views.problem
    rates, slos, rules = set(), set(), []
    kinds = set()
    for line in kept:
        rates |= {line.index} if line.kind == "rate" else set()
        slos |= {line.index} if line.kind == "slo" else set()
        rules += [problem.rules[line.index]] if line.kind == "rule" else []
        kinds.add(line.kind)
    chains = tuple(
        chain if number in rates else replace(chain, load=None) for number, chain in enumerate(problem.chains)
    )
    relaxed = replace(problem, chains=chains, rules=tuple(sorted(rules, key=lambda rule: problem.rules.index(rule))))
    if "rows" not in kinds and problem.max_rows_span is not None:
        relaxed = replace(relaxed, max_rows=_ENDLESS_ROWS)
    if "headroom" not in kinds:
        free = tuple(replace(device, headroom_bytes=0) for device in problem.devices)
        relaxed = replace(relaxed, headroom=Fraction(0), devices=free)
    if "devices" not in kinds:
        count = len(problem.devices) * max((rule.count for rule in relaxed.rules), default=1)
        relaxed = replace(relaxed, devices=more_devices(relaxed, max(count, MOST_DEVICES - count)))
    packing = packing_of(views.with_problem(relaxed))
    without = [number for number in rates if number not in slos]
    return slower(packing, without, _SLOWER, relaxed) if without else packing


def slower(packing: Packing, chains: Iterable[int], factor: int, problem: PlaceProblem) -> Packing:
    """Targets of these chains times ``factor``."""
    late = set(chains)
    most = math.floor(BUSY_LIMITS[0] * (1 - float(problem.headroom)) * PARTS)
    return replace(
        packing,
        groups=tuple(
            replace(group, tau_ns=group.tau_ns * factor) if number in late and group.tau_ns is not None else group
            for number, group in enumerate(packing.groups)
        ),
        kinds=tuple(
            replace(
                kind,
                limit=tuple(
                    most if number in late and kind.unit_parts[number] else limit
                    for number, limit in enumerate(kind.limit)
                ),
            )
            for kind in packing.kinds
        ),
    )


def more_devices(problem: PlaceProblem, count: int) -> tuple[PlaceDevice, ...]:
    """The devices with ``count`` more, like those that are there, on nodes like theirs."""
    devices = problem.devices
    added = tuple(
        replace(devices[number % len(devices)], address=f"more-{number // len(devices)}-{own.node}/{number}")
        for number in range(count)
        for own in (devices[number % len(devices)],)
    )
    return (*devices, *added)


def scaled(problem: PlaceProblem, factor: Fraction) -> PlaceProblem:
    """All rates times ``factor``."""
    return replace(
        problem,
        chains=tuple(
            chain
            if chain.load is None
            else replace(chain, load=replace(chain.load, rate_rps=chain.load.rate_rps * factor))
            for chain in problem.chains
        ),
    )
