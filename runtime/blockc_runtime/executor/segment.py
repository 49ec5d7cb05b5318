"""A segment ready to run, and a pass through it or a part of it: its blocks in order, each called with what it reads.

In: tokens and positions, the hidden state before, sides and KV batches. Out: the hidden state after, or logits.
Invariant: it neither knows nor cares whether what it is given will be filled in anew and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from blockc_runtime.executor.program import LinearGroup, LogitRows, Program, SiteGroup
from blockc_runtime.executor.sides import Bank


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """One pass through a block: what its program is called with, beside the launch's own arguments."""

    program: Program
    bound: tuple[Any, ...]
    prelude: str | None
    contexts: tuple[int, ...]
    kv_groups: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSegment:
    """A segment ready to launch. ``base_reads``: multiplications by base weights that one pass of each block makes."""

    occurrences: tuple[Occurrence, ...]
    banks: tuple[Bank, ...]
    dtype: torch.dtype
    yields_logits: bool
    base_reads: tuple[int, ...]

    @property
    def groups(self) -> tuple[tuple[LinearGroup | SiteGroup, ...], ...]:
        """What a fine-tune may act at in each occurrence."""
        return tuple(occurrence.program.groups for occurrence in self.occurrences)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassInputs:
    """``tokens`` and ``positions`` ``[1, T]``; ``states``: gives the hidden states ``[1, T, F]`` before the blocks.

    ``contexts``: what preludes have yielded for these rows, by prelude.
    """

    token_count: int
    rows: LogitRows
    tokens: Tensor
    positions: Tensor
    states: Callable[[], Tensor]
    contexts: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)


# Runs blocks: (which, what they read, KV batches, in the way of all others) -> hidden states.
Again = Callable[[tuple[int, int], tuple[Tensor, ...], Sequence[Any], Callable[[], Tensor]], Tensor]


def run_blocks(
    blocks: Sequence[Occurrence],
    preludes: Mapping[str, Occurrence],
    given: PassInputs,
    *,
    sides: Sequence[Sequence[Any]],
    kv_batch: Callable[[int], Any],
    again: Again | None = None,
) -> Tensor:
    """Hidden states ``[1, T, F]``, or logits ``[1, R, V]`` after the last block. ``kv_batch``: of a KV group.

    ``again``: runs blocks that can be repeated; by default they are run as all others.
    """

    def through(part: Sequence[tuple[Occurrence, Sequence[Any]]], states: Tensor | None) -> Tensor:
        for occurrence, groups in part:
            states = occurrence.program.call(
                given.token_count,
                given.rows,
                *_inputs(occurrence, given, states),
                *_context(occurrence, preludes, given),
                *occurrence.bound,
                *groups,
                *(kv_batch(group) for group in occurrence.kv_groups),
            )
        assert states is not None
        return states

    states: Tensor | None = None
    first = 0
    for repeats, stretch in groupby(zip(blocks, sides, strict=True), lambda pair: pair[0].program.repeats):
        part = list(stretch)
        if again is None or not repeats:
            states = through(part, states)
        else:
            before = given.states() if states is None else states
            contexts = {id(own): own for occurrence, _ in part for own in _context(occurrence, preludes, given)}
            tables = {group: kv_batch(group) for occurrence, _ in part for group in occurrence.kv_groups}
            own = (before, *contexts.values())
            states = again((first, len(part)), own, list(tables.values()), partial(through, part, before))
        first += len(part)
    assert states is not None
    return states


def reads_states(blocks: Sequence[Occurrence]) -> bool:
    """Whether they go on from hidden states."""
    names = {name for name, _ in blocks[0].program.structure.inputs}
    return not names <= {"tokens", "positions"}


def _inputs(occurrence: Occurrence, given: PassInputs, states: Tensor | None) -> list[Tensor]:
    """The inputs of a block by name: tokens and positions are the step's, the other one is the hidden state."""
    inputs = []
    for name, _ in occurrence.program.structure.inputs:
        if name == "tokens":
            inputs.append(given.tokens)
        elif name == "positions":
            inputs.append(given.positions)
        else:
            inputs.append(given.states() if states is None else states)
    return inputs


def _context(occurrence: Occurrence, preludes: Mapping[str, Occurrence], given: PassInputs) -> tuple[Tensor, ...]:
    """The prelude's outputs that the block reads; the prelude runs once for these rows."""
    if occurrence.prelude is None or not occurrence.contexts:
        return ()
    if occurrence.prelude not in given.contexts:
        prelude = preludes[occurrence.prelude]
        found = prelude.program.call(given.token_count, None, *_inputs(prelude, given, None), *prelude.bound)
        given.contexts[occurrence.prelude] = found if isinstance(found, tuple) else (found,)
    return tuple(given.contexts[occurrence.prelude][i] for i in occurrence.contexts)
