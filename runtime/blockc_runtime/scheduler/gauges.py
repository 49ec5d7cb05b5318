"""What a scheduler tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blockc_runtime.kv.pages import PageUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """State for metrics. All but ``running``, ``waiting``, ``sessions`` and ``pages`` (by KV group) only grow.

    ``preemptions``: requests that had to give their place or pages back; ``side_loads``: fine-tunes put in a slot;
    ``block_loads`` and ``block_evictions``: segments whose weights came and went; ``residency_wait_s``: seconds that
    requests, each for itself, waited for either.
    ``overlapped``: steps that were issued while another one was in flight; ``waits``: how often, by reason, none was
    though requests were there (`draft.Wait`). ``sessions`` pause now; ``sessions_lost``: so many with their pages.
    """

    running: int
    waiting: int
    steps_in_flight: int
    steps: int
    preemptions: int
    side_loads: int
    pages: tuple[PageUsage, ...]
    block_loads: int = 0
    block_evictions: int = 0
    residency_wait_s: float = 0.0
    overlapped: int = 0
    waits: Mapping[str, int] = field(default_factory=dict)
    sessions: int = 0
    sessions_lost: int = 0
