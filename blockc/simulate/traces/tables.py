"""Traces as tables with commas: Azure's and BurstGPT's.

Azure (Splitwise, ISCA 2024; github.com/Azure/AzurePublicDataset): ``TIMESTAMP,ContextTokens,GeneratedTokens`` with
dates. BurstGPT (arXiv 2401.17644): ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`` with
seconds; a request that failed has 0 response tokens. Its models are OpenAI's, so apps are drawn.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from blockc.simulate.traces.row import LineError, Lines, TraceRow, seconds_of, tokens_of

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


def read_azure(text: Sequence[str], lines: Lines) -> list[TraceRow]:
    """Rows of an Azure trace; columns may stand in any order."""
    at, prompt, output = (_columns(text).index(name) for name in AZURE)

    def parse(number: int, cells: list[str]) -> TraceRow:
        return TraceRow(
            at_s=_date_s(cells[at]),
            prompt_tokens=tokens_of(cells[prompt], AZURE[1]),
            output_tokens=tokens_of(cells[output], AZURE[2]),
            line=number,
        )

    return _rows(text, lines, parse)


def read_burstgpt(text: Sequence[str], lines: Lines) -> list[TraceRow]:
    """Rows of a BurstGPT trace. Failures are left out."""
    columns = _columns(text)
    at, prompt, output = (columns.index(name) for name in (BURSTGPT[0], BURSTGPT[2], BURSTGPT[3]))

    def parse(number: int, cells: list[str]) -> TraceRow:
        return TraceRow(
            at_s=seconds_of(cells[at], BURSTGPT[0]),
            prompt_tokens=tokens_of(cells[prompt], BURSTGPT[2]),
            output_tokens=tokens_of(cells[output], BURSTGPT[3]),
            line=number,
        )

    return _rows(text, lines, parse)


def has_columns(header: str, names: Sequence[str]) -> bool:
    """Whether a table with this first line is one of those with these columns."""
    return set(names) <= set(_cells(header))


def _columns(text: Sequence[str]) -> list[str]:
    return _cells(text[0])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]


def _rows(text: Sequence[str], lines: Lines, parse: Callable[[int, list[str]], TraceRow]) -> list[TraceRow]:
    width = len(_columns(text))

    def parse_line(number: int, line: str) -> TraceRow:
        try:
            cells = _cells(line) if '"' in line else line.split(",")
        except csv.Error as error:
            raise LineError(f"not a row of a table: {error}") from None
        if len(cells) != width:
            raise LineError(f"{len(cells)} columns, expected {width} as in the first line")
        return parse(number, cells)

    return lines.rows(enumerate(text[1:], start=2), parse_line)


def _date_s(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        shown = "".join(char if char.isprintable() else "?" for char in text[:40])
        raise LineError(f"`{AZURE[0]}` is `{shown}`, expected such as `2023-11-16 18:15:46.68`") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
