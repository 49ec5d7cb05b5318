"""Figures of a run: rates, latencies by percentile, and how they compare with a saved run.

In: answers. Out: :class:`Figures` by app and over all, tables of words, a document. Percentiles are of whole requests
(nearest rank), failures apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from blockc.cli.load.client import Answer

FORMAT_VERSION = 1
ALL = "all apps"  # no app is called so: clients write `tenant/app`


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one app, or of all. Times in seconds; None where no request tells."""

    requests: int
    failed: int
    output_tokens_per_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p95_s: float | None
    e2e_p50_s: float | None
    e2e_p95_s: float | None


# What a comparison shows, in words; and whether more is better.
_COMPARED: Mapping[str, tuple[str, bool]] = {
    "output_tokens_per_s": ("tokens/s", True),
    "ttft_p50_s": ("TTFT p50", False),
    "ttft_p95_s": ("TTFT p95", False),
    "tpot_p50_s": ("TPOT p50", False),
    "tpot_p95_s": ("TPOT p95", False),
    "e2e_p95_s": ("E2E p95", False),
}


def figures_of(answers: Sequence[Answer]) -> dict[str, Figures]:
    """By app, in order of their names; `ALL` first."""
    wall_s = max((answer.ended_s for answer in answers), default=0.0)
    apps = sorted({answer.app for answer in answers})
    found = {ALL: _figures(answers, wall_s)}
    return found | {app: _figures([a for a in answers if a.app == app], wall_s) for app in apps}


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest rank; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def table(found: Mapping[str, Figures]) -> list[str]:
    """Lines of a table."""
    head = ["", "requests", "failed", "tokens/s", "TTFT p50", "p95", "p99", "TPOT p50", "p95", "E2E p50", "p95"]
    rows = [
        [
            name,
            str(f.requests),
            str(f.failed),
            f"{f.output_tokens_per_s:.1f}",
            *map(
                _time, (f.ttft_p50_s, f.ttft_p95_s, f.ttft_p99_s, f.tpot_p50_s, f.tpot_p95_s, f.e2e_p50_s, f.e2e_p95_s)
            ),
        ]
        for name, f in found.items()
    ]
    return _aligned([head, *rows])


def document(found: Mapping[str, Figures], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": "blockc bench",
        "settings": dict(settings),
        "figures": {name: asdict(figures) for name, figures in found.items()},
    }


def read_document(content: Any) -> tuple[dict[str, Figures], dict[str, Any]]:
    """Figures and settings of a saved run. Raises ValueError for anything else."""
    try:
        if content["format_version"] != FORMAT_VERSION or content["kind"] != "blockc bench":
            raise ValueError("another format")
        names = {field.name for field in fields(Figures)}
        saved = {str(name): Figures(**{k: entry[k] for k in names}) for name, entry in content["figures"].items()}
        for figures in saved.values():
            if not all(value is None or isinstance(value, int | float) for value in asdict(figures).values()):
                raise ValueError("figures that are no numbers")
        return saved, dict(content["settings"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def comparison(now: Mapping[str, Figures], before: Mapping[str, Figures]) -> list[str]:
    """Lines of a table: change of each figure against the saved run, of what both have."""
    head = ["", *(words for words, _ in _COMPARED.values())]
    rows = [
        [name, *(_change(getattr(now[name], key), getattr(before[name], key)) for key in _COMPARED)]
        for name in now
        if name in before
    ]
    return _aligned([head, *rows])


def worse(now: Mapping[str, Figures], before: Mapping[str, Figures], tolerance: float) -> Iterator[str]:
    """What is worse over all apps by more than ``tolerance``, a share; failures at any number more."""
    one, two = now[ALL], before[ALL]
    if one.failed > two.failed:
        yield f"{one.failed} requests failed, {two.failed} before"
    for key, (words, more_is_better) in _COMPARED.items():
        new, old = getattr(one, key), getattr(two, key)
        if new is not None and old:
            change = (old - new) / old if more_is_better else (new - old) / old
            if change > tolerance:
                yield f"{words} is {change:.1%} worse"


def _figures(answers: Sequence[Answer], wall_s: float) -> Figures:
    good = [answer for answer in answers if answer.error is None]
    ttft, e2e = [answer.ttft_s for answer in good], [answer.e2e_s for answer in good]
    tpot = [answer.tpot_s for answer in good if answer.tpot_s is not None]
    return Figures(
        requests=len(answers),
        failed=len(answers) - len(good),
        output_tokens_per_s=sum(answer.output_tokens for answer in good) / wall_s if wall_s else 0.0,
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p95_s=percentile(ttft, 0.95),
        ttft_p99_s=percentile(ttft, 0.99),
        tpot_p50_s=percentile(tpot, 0.5),
        tpot_p95_s=percentile(tpot, 0.95),
        e2e_p50_s=percentile(e2e, 0.5),
        e2e_p95_s=percentile(e2e, 0.95),
    )


def _time(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _change(new: float | None, old: float | None) -> str:
    return "-" if new is None or not old else f"{(new - old) / old:+.1%}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append(f"  {name:<{widths[0]}}  {numbers}".rstrip())
    return lines
