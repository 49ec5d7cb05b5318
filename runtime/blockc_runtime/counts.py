"""What only grows while an engine lives: counted by each scheduler, added up over those of plans that are gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from blockc_runtime.step import Launched


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """So many, ever.

    ``preemptions``: requests that had to give their place or pages back; ``side_loads``: fine-tunes put in a slot;
    ``block_loads`` and ``block_evictions``: segments whose weights came and went; ``residency_wait_s``: seconds that
    requests, each for itself, waited for either. ``overlapped``: steps that were issued while another one was in
    flight; ``waits``: how often, by reason, none was though requests were there (`scheduler.draft.Wait`, or ``plans``
    where those of another plan are under way). ``replays``: launches that were recorded graphs; ``op_by_op``: others,
    by why they were not, where graphs are used at all. ``recorded``: graphs, which took the engine ``recording_s``.
    """

    preemptions: int = 0
    side_loads: int = 0
    block_loads: int = 0
    block_evictions: int = 0
    residency_wait_s: float = 0.0
    overlapped: int = 0
    waits: Mapping[str, int] = field(default_factory=dict)
    replays: int = 0
    op_by_op: Mapping[str, int] = field(default_factory=dict)
    recorded: int = 0
    recording_s: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        waits = Counter(self.waits) + Counter(other.waits)
        op_by_op = Counter(self.op_by_op) + Counter(other.op_by_op)
        return Counts(
            preemptions=self.preemptions + other.preemptions,
            side_loads=self.side_loads + other.side_loads,
            block_loads=self.block_loads + other.block_loads,
            block_evictions=self.block_evictions + other.block_evictions,
            residency_wait_s=self.residency_wait_s + other.residency_wait_s,
            overlapped=self.overlapped + other.overlapped,
            waits=dict(sorted(waits.items())),
            replays=self.replays + other.replays,
            op_by_op=dict(sorted(op_by_op.items())),
            recorded=self.recorded + other.recorded,
            recording_s=self.recording_s + other.recording_s,
        )


@dataclass(slots=True)
class LaunchCounts:
    """How launches were made, added up step by step."""

    _replays: int = 0
    _op_by_op: Counter[str] = field(default_factory=Counter)
    _recorded: int = 0
    _recording_s: float = 0.0

    def add(self, launched: Launched) -> None:
        """Those of a step."""
        self._replays += launched.replays
        self._op_by_op.update(launched.op_by_op)
        self._recorded += launched.recorded
        self._recording_s += launched.recording_s

    @property
    def counts(self) -> Counts:
        """So far."""
        return Counts(
            replays=self._replays, op_by_op=self._op_by_op, recorded=self._recorded, recording_s=self._recording_s
        )
