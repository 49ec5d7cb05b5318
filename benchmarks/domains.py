"""Eight kinds of short texts, made by templates and a seed, for fine-tunes that are really trained."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

_NAMES = ("Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo")
_THINGS = ("lamp", "chair", "book", "apple", "clock", "bottle", "coat", "wheel")
_COLOURS = ("red", "green", "blue", "white", "black", "yellow")
_VERBS = ("open", "close", "paint", "sell", "carry", "clean")
_MONTHS = ("January", "March", "May", "July", "August", "October")


def _sums(rng: random.Random) -> str:
    one, other = rng.randrange(100), rng.randrange(100)
    return f"{one} plus {other} equals {one + other}, and {one + other} minus {other} equals {one}."


def _records(rng: random.Random) -> str:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    return f'{{"name": "{name}", "item": "{thing}", "colour": "{rng.choice(_COLOURS)}", "count": {rng.randrange(20)}}}'


def _queries(rng: random.Random) -> str:
    thing, name, colour = rng.choice(_THINGS), rng.choice(_NAMES), rng.choice(_COLOURS)
    return f"SELECT count FROM {thing}s WHERE owner = '{name}' AND colour = '{colour}' LIMIT {rng.randrange(9)};"


def _logs(rng: random.Random) -> str:
    at, thing = f"{rng.randrange(24):02}:{rng.randrange(60):02}", f"{rng.choice(_THINGS)}-{rng.randrange(9)}"
    end = rng.choice(("ok", "failed", "slow"))
    return f"[{at}] {thing} {rng.choice(_VERBS)} {end} in {rng.randrange(900)} ms"


def _dates(rng: random.Random) -> str:
    day, month, year = rng.randrange(2, 29), rng.randrange(len(_MONTHS)), rng.randrange(1900, 2000)
    written = f"{day:02}/{2 * month + 1:02}/{year}"
    return f"{_MONTHS[month]} {day}, {year} is written {written}, the day before is {day - 1:02}."


def _code(rng: random.Random) -> str:
    verb, thing = rng.choice(_VERBS), rng.choice(_THINGS)
    first = f"{thing}.colour = '{rng.choice(_COLOURS)}'"
    return f"def {verb}_{thing}({thing}):\n    {first}\n    return {thing}.{verb}({rng.randrange(9)})"


def _orders(rng: random.Random) -> str:
    what = f"{rng.randrange(2, 9)} {rng.choice(_COLOURS)} {rng.choice(_THINGS)}s"
    when = f"{rng.choice(_MONTHS)} {rng.randrange(1, 29)}"
    return f"Dear {rng.choice(_NAMES)}, thank you for your order of {what}. We {rng.choice(_VERBS)} them on {when}."


def _lists(rng: random.Random) -> str:
    things = rng.sample(_THINGS, 4)
    return f"forwards: {', '.join(things)}; backwards: {', '.join(reversed(things))}"


DOMAINS: Mapping[str, Callable[[random.Random], str]] = {
    "sums": _sums, "records": _records, "queries": _queries, "logs": _logs,
    "dates": _dates, "code": _code, "orders": _orders, "lists": _lists,
}  # fmt: skip


def texts(domain: str, count: int, *, seed: int) -> list[str]:
    rng = random.Random(f"{domain} {seed}")
    return [DOMAINS[domain](rng) for _ in range(count)]
