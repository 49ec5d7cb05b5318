"""What a scheduler tells of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from blockc_runtime.counts import Counts
from blockc_runtime.kv.pages import PageUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """State for metrics: what is now (``pages`` by KV group, ``sessions`` that pause), and what only grows.

    ``sessions_lost``: so many with their pages.
    """

    running: int
    waiting: int
    steps_in_flight: int
    steps: int
    pages: tuple[PageUsage, ...]
    counts: Counts = field(default_factory=Counts)
    sessions: int = 0
    sessions_lost: int = 0
