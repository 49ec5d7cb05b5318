"""Progress on stderr: a line per stage, bars for weights where somebody watches, or events for programs.

``json``: one JSON object a line, ``{"event": "stage", "stage", "seconds"}`` when a stage has ended and ``{"event":
"bytes", "model", "done_bytes", "total_bytes"}`` while weights are hashed and stored. With ``--json`` nothing else is
on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from blockc.cli.options import ProgressMode

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_BETWEEN_EVENTS_S = 0.1


class Listener:
    """What a compilation tells, and silence: others say it."""

    def on_stage(self, name: str, seconds: float) -> None:
        """A stage has ended."""

    def on_bytes(self, model: str, done: int, total: int) -> None:
        """Of a model's weights so many bytes are hashed and in the zoo."""


@contextmanager
def listening(mode: ProgressMode) -> Iterator[Listener]:
    """The listener of a mode, for the time of a compilation."""
    if mode in (ProgressMode.JSON, ProgressMode.NONE):
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the hub's client is imported
        yield _Events() if mode is ProgressMode.JSON else Listener()
    elif mode is ProgressMode.BAR or sys.stderr.isatty():
        bars = _Bars(_bars())
        try:
            yield bars
        finally:
            bars.hide()
    else:
        yield _Lines()


def stage_lines() -> Callable[[str, float], None]:
    """A listener that prints ``stage: seconds`` when a stage has ended."""
    return _Lines().on_stage


class _Lines(Listener):
    def on_stage(self, name: str, seconds: float) -> None:
        print(f"{name:>8} {seconds:7.2f} s", file=sys.stderr, flush=True)


class _Events(Listener):
    def __init__(self) -> None:
        self._last_s: dict[str, float] = {}

    def on_stage(self, name: str, seconds: float) -> None:
        self._print(event="stage", stage=name, seconds=round(seconds, 3))

    def on_bytes(self, model: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if done >= total or now_s - self._last_s.get(model, -_BETWEEN_EVENTS_S) >= _BETWEEN_EVENTS_S:
            self._last_s[model] = now_s
            self._print(event="bytes", model=model, done_bytes=done, total_bytes=total)

    def _print(self, **event: object) -> None:
        print(json.dumps(event), file=sys.stderr, flush=True)


class _Bars(_Lines):
    """Bars while weights are read; at other times the hub's client may draw its own."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._shown = False

    def on_stage(self, name: str, seconds: float) -> None:
        self.hide()
        super().on_stage(name, seconds)

    def on_bytes(self, model: str, done: int, total: int) -> None:
        if not self._shown:
            self._bars.start()
            self._shown = True
        if model not in self._tasks:
            self._tasks[model] = self._bars.add_task(model, total=total)
        self._bars.update(self._tasks[model], completed=done)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(model))

    def hide(self) -> None:
        if self._shown:
            self._bars.stop()
            self._shown = False


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    name = TextColumn("{task.description}", markup=False)
    return Progress(
        name, BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
