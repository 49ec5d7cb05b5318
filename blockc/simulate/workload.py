"""What is asked of a fleet, and when: the requests that a simulation runs.

In: rows of a trace or draws of a generator. Out: arrivals in the order of time. Invariant: arrivals are numbered from 0
in the order in which they are given, and a turn of a conversation stands after the turn that it follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

# Tokens that one of a trace's hashes stands for (Mooncake, arXiv 2407.00079, section 4).
HASH_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request: ``prompt_tokens`` in, ``output_tokens`` out, asked of an app by its index in the plan.

    ``blocks``: names of the prompt's leading blocks of 512 tokens, equal where their tokens are equal. ``after``: the
    arrival whose prompt and answer this one's prompt begins with; it comes ``at_s`` seconds after that has ended, in
    place of at ``at_s``.
    """

    at_s: float
    app: int
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Arrivals with where they come from. ``left_out``: requests of the source that are not among them, by reason.

    ``shed``: of each app, how many are not among them because the plan has no place for them; empty: all are.
    """

    arrivals: tuple[Arrival, ...]
    source: str
    left_out: tuple[tuple[str, int], ...] = ()
    shed: tuple[int, ...] = ()

    @property
    def may_reuse(self) -> bool:
        """Whether any prompt begins as another one does."""
        return any(item.after is not None or item.blocks for item in self.arrivals)

    @property
    def horizon_s(self) -> float:
        """When the last request arrives that follows no other."""
        return max((item.at_s for item in self.arrivals if item.after is None), default=0.0)


def opening(blocks: Sequence[int]) -> int:
    """What requests of one conversation have in common: the second block, for the first is often a system prompt."""
    return blocks[min(1, len(blocks) - 1)]


def faster(workload: Workload, factor: float) -> Workload:
    """The same requests at ``factor`` times their rate. Pauses between the turns of a conversation stay."""
    return replace(
        workload,
        arrivals=tuple(
            item if item.after is not None else replace(item, at_s=item.at_s / factor) for item in workload.arrivals
        ),
    )


def first(workload: Workload, seconds: float) -> Workload:
    """What arrives in the first ``seconds``, with the turns that follow it."""
    kept: list[Arrival] = []
    number_of: dict[int, int] = {}
    for number, item in enumerate(workload.arrivals):
        if item.after is not None and item.after not in number_of:
            continue
        if item.after is None and item.at_s > seconds:
            continue
        number_of[number] = len(kept)
        kept.append(item if item.after is None else replace(item, after=number_of[item.after]))
    return replace(workload, arrivals=tuple(kept))


def in_order(arrivals: Sequence[Arrival]) -> tuple[Arrival, ...]:
    """Arrivals by time; those that follow others keep their place after them. Nothing here may follow another."""
    assert all(item.after is None for item in arrivals)
    return tuple(sorted(arrivals, key=lambda item: item.at_s))
