"""Requests that go from one instance to another while they are under way, and instances that go out of service.

Plain data: what is asked for, and what came of it. Times of what happened are in ticks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Why = Literal["load", "drain", "failure", "read"]
# Why a request is refused that an instance had, or was given, and no other can take.
LOST: Final = "its instance failed, and no other runs its model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """From ``at_s`` on an instance takes nothing new, and what it has goes elsewhere, if anything else runs its model.

    ``is_failure``: its KV is lost, and who can go nowhere is refused; else they stay until they end.
    """

    at_s: float
    instance: int
    is_failure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """One request's way. ``left``: when ``source`` let it go; ``there``: when it and its KV are at ``target``.

    ``verdict``: what became of its KV, in the router's words (`blockc_runtime.router`). ``why`` ``read``: its prompt
    has been read, and others answer.
    """

    number: int
    source: int
    target: int
    left: int
    there: int
    nbytes: int
    verdict: str
    why: Why


def outage_of(names: Sequence[str], text: str, *, is_failure: bool) -> Outage | str:
    """An outage written as ``DEVICE@SECONDS``; else what is wrong. ``names``: of instances, their devices' addresses.

    A device takes its whole instance along.
    """
    device, _, at = text.rpartition("@")
    found = [index for index, name in enumerate(names) if device in (name, *name.split("+"))]
    if not found:
        return f"no instance has a device `{device}`: {', '.join(names)}"
    try:
        at_s = float(at)
    except ValueError:
        at_s = math.nan
    if not (math.isfinite(at_s) and at_s >= 0):
        return f"`{at}` is no number of seconds"
    return Outage(at_s=at_s, instance=found[0], is_failure=is_failure)


def first_of(outages: Iterable[Outage]) -> tuple[Outage, ...]:
    """By time. Raises ValueError if an instance goes out of service twice."""
    found = tuple(sorted(outages, key=lambda item: (item.at_s, item.instance)))
    if len({item.instance for item in found}) != len(found):
        raise ValueError("an instance goes out of service twice")
    return found
