"""When which app is asked for how much: by chance at a rate, or as a trace says.

In: apps and their longest sequences, figures of the load, a seed. Out: arrivals in order of time. Invariant: the same
arguments give the same arrivals.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from blockc.diag import refuse

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")  # of the Azure traces, and of others after them


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request. ``at_s``: after the beginning; ``number`` makes its prompt its own."""

    number: int
    at_s: float
    app: str
    prompt_tokens: int
    output_tokens: int


def poisson(
    longest: Mapping[str, int], *, requests: int, rate: float, prompt_tokens: int, output_tokens: int, seed: int
) -> tuple[Arrival, ...]:
    """Independent arrivals, apps in turns. ``rate``: requests a second over all apps."""
    chance = random.Random(seed)  # noqa: S311 - load, not secrets
    apps, at_s, found = sorted(longest), 0.0, []
    for number in range(requests):
        at_s += chance.expovariate(rate)
        app = apps[number % len(apps)]
        found.append(_fitted(number, at_s, app, prompt_tokens, output_tokens, longest[app]))
    return tuple(found)


def traced(longest: Mapping[str, int], path: Path, *, requests: int, speed: float, seed: int) -> tuple[Arrival, ...]:
    """The first requests of a trace, apps by chance. Raises `DiagnosticError` (BC003, BC109).

    ``speed`` 2 sends them in half of the time.
    """
    chance = random.Random(seed)  # noqa: S311 - load, not secrets
    apps, found = sorted(longest), []
    first: datetime | None = None
    for number, (when, prompt_tokens, output_tokens) in zip(range(requests), _rows(path), strict=False):
        first = first or when
        app = chance.choice(apps)
        at_s = max(0.0, (when - first).total_seconds() / speed)
        found.append(_fitted(number, at_s, app, prompt_tokens, output_tokens, longest[app]))
    if not found:
        _refuse("BC109", f"{path} has no request")
    return tuple(sorted(found, key=lambda arrival: arrival.at_s))


def _fitted(number: int, at_s: float, app: str, prompt_tokens: int, output_tokens: int, longest: int) -> Arrival:
    """Shortened to what the app's model takes: the answer first to half, then the prompt."""
    output = max(1, min(output_tokens, max(1, longest // 2)))
    prompt = max(1, min(prompt_tokens, longest - output))
    return Arrival(number=number, at_s=at_s, app=app, prompt_tokens=prompt, output_tokens=output)


def _rows(path: Path) -> Iterator[tuple[datetime, int, int]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                _refuse("BC109", f"{path} is no trace: its columns have to be {', '.join(_COLUMNS)}")
            for line, row in enumerate(reader, 2):
                try:
                    when = datetime.fromisoformat(
                        row["TIMESTAMP"].strip()[:26]
                    )  # microseconds; traces have more digits
                    yield when, int(row["ContextTokens"]), int(row["GeneratedTokens"])
                except (ValueError, AttributeError, TypeError):
                    _refuse("BC109", f"line {line} of {path} is no request of a trace")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        _refuse("BC003", f"cannot read the trace {path}: {getattr(error, 'strerror', None) or error}")


def _refuse(code: str, message: str) -> NoReturn:
    refuse(code, message, "a trace is a CSV file such as those of Azure's LLM inference traces")
