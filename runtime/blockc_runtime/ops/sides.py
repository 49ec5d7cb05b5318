"""Which places of a launch use which fine-tune of one bank.

In: rows with their counts and slots. Out: :class:`SideBatch`, made once a launch and used at every site, with the
groupings that ops need. Invariant: a place that uses no slot of the bank is in none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blockc_runtime.ops.transfer import on_device


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSides:
    """Rows of one token: tokens ``start .. stop`` use ``slots [stop - start]``."""

    start: int
    stop: int
    slots: Tensor
    _bags: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def bags(self, width: int) -> tuple[Tensor, Tensor]:
        """Where each row's ``width`` consecutive rows lie in a table of N * width: (all, offsets)."""
        if width not in self._bags:
            inside = torch.arange(width, device=self.slots.device)
            index = (self.slots[:, None] * width + inside).view(-1)
            offsets = torch.arange(0, index.shape[0], width, device=self.slots.device)
            self._bags[width] = index, offsets
        return self._bags[width]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens ``start .. stop`` use one slot."""

    start: int
    stop: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRow:
    """A row that uses a slot: ``count`` places from ``first`` on; its first token stands at ``position``."""

    first: int
    count: int
    position: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTable:
    """``values`` int32 ``[count, 3]``: first place, number of places, slot."""

    values: Tensor
    count: int


@dataclass(frozen=True, kw_only=True)
class SideBatch:
    """Who uses one bank among the ``total`` places of a launch: its tokens, or the rows whose logits are wanted.

    What ops read is made when it is first asked for. ``joined`` keeps what is made of this batch and others of its
    launch.
    """

    total: int
    rows: tuple[SideRow, ...]
    device: torch.device
    joined: dict[tuple[int, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def singles(self) -> tuple[DecodeSides, ...]:
        """Neighbours of one token each."""
        runs: list[tuple[int, list[int]]] = []
        for row in self.rows:
            if row.count > 1:
                continue
            if not runs or runs[-1][0] + len(runs[-1][1]) != row.first:
                runs.append((row.first, []))
            runs[-1][1].append(row.slot)
        return tuple(
            DecodeSides(start=start, stop=start + len(slots), slots=on_device(slots, self.device))
            for start, slots in runs
        )

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Neighbours of several tokens and one slot."""
        rows = [row for row in self.rows if row.count > 1]
        return tuple(Span(start=first, stop=first + count, slot=slot) for first, count, slot in runs_of(rows))

    @cached_property
    def table(self) -> RowTable:
        """Neighbours that use one slot together, for kernels."""
        rows = runs_of(self.rows)
        return RowTable(values=torch.tensor(rows, dtype=torch.int32), count=len(rows))

    @cached_property
    def tokens(self) -> Tensor:
        """``[n]``: the places that use a slot, in order."""
        places = [row.first + i for row in self.rows for i in range(row.count)]
        return on_device(places, self.device)

    @cached_property
    def slots(self) -> Tensor:
        """``[n]``: the slot of each of ``tokens``."""
        slots = [row.slot for row in self.rows for _ in range(row.count)]
        return on_device(slots, self.device)

    @cached_property
    def by_slot(self) -> tuple[tuple[int, Tensor], ...]:
        """Each slot in use with the places that use it, for what cannot be stacked."""
        places: dict[int, list[int]] = {}
        for row in self.rows:
            places.setdefault(row.slot, []).extend(range(row.first, row.first + row.count))
        return tuple((slot, on_device(own, self.device)) for slot, own in places.items())


def runs_of(rows: Sequence[SideRow]) -> list[tuple[int, int, int]]:
    """(first place, number of places, slot): neighbours that use one slot, together."""
    runs: list[tuple[int, int, int]] = []
    for row in rows:
        first, count = row.first, row.count
        if runs and (runs[-1][0] + runs[-1][1], runs[-1][2]) == (first, row.slot):
            first, before, _ = runs.pop()
            count += before
        runs.append((first, count, row.slot))
    return runs


# What a site is given: for each bank with fine-tunes in the launch, its weights there and who uses them.
SideSet = tuple[tuple[Any, SideBatch], ...]


def side_batch(
    rows: Sequence[tuple[int, int | None]], *, device: torch.device, positions: Sequence[int] | None = None
) -> SideBatch:
    """Group the places of one bank. ``rows``: (count, slot) in order; slot None: another bank, or none.

    ``positions``: of the first token of each row, 0 by default.
    """
    used: list[SideRow] = []
    token = 0
    for number, (count, slot) in enumerate(rows):
        if slot is not None and count:
            position = 0 if positions is None else positions[number]
            used.append(SideRow(first=token, count=count, position=position, slot=slot))
        token += count
    return SideBatch(total=token, rows=tuple(used), device=device)
