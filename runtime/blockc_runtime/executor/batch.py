"""Rows of a step -> the token axis of a launch.

In: the rows that travel together. Out: a :class:`TokenBatch`: one token first, then chunks, and within each by the
order of their fine-tunes, so that rows of one fine-tune are neighbours and everything per row is a slice.
Invariant: a row that cannot be run safely is refused by :func:`row_problem` before it can touch anyone's pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from blockc_runtime.ops.attention.rows import KvRow
from blockc_runtime.ops.transfer import on_device
from blockc_runtime.step import Row


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Rows laid out on one token axis.

    ``rows``: indices into the step, in token order; ``firsts``: the first token of each. ``samples``: for each row how
    many trailing tokens want logits. What is on the device is put there when it is first asked for. ``feeds``: by their
    places, of tokens that only the device knows.
    """

    rows: tuple[int, ...]
    firsts: tuple[int, ...]
    counts: tuple[int, ...]
    samples: tuple[int, ...]
    token_ids: tuple[int, ...]
    places: tuple[int, ...]
    device: torch.device
    feeds: tuple[tuple[int, DeviceFeed], ...] = ()

    @property
    def token_count(self) -> int:
        """T."""
        return len(self.token_ids)

    @cached_property
    def tokens(self) -> Tensor:
        """``[1, T]``."""
        tokens = on_device(self.token_ids, self.device)
        self.feed(tokens)
        return tokens[None]

    @cached_property
    def positions(self) -> Tensor:
        """``[1, T]``."""
        return on_device(self.places, self.device)[None]

    @cached_property
    def logit_index(self) -> Tensor | None:
        """``[R]``: the places that want logits; None where that is every token."""
        wanted = [
            place
            for first, count, samples in zip(self.firsts, self.counts, self.samples, strict=True)
            for place in range(first + count - samples, first + count)
        ]
        if len(wanted) == self.token_count:
            return None
        return on_device(wanted, self.device)

    def feed(self, tokens: Tensor) -> None:
        """Put what earlier steps have drawn into ``tokens [T or more]``, on the device."""
        sources = {id(feed.tokens): feed.tokens for _, feed in self.feeds}
        for key, drawn in sources.items():
            pairs = [(place, feed.place) for place, feed in self.feeds if id(feed.tokens) == key]
            index = on_device([*(place for place, _ in pairs), *(place for _, place in pairs)], self.device)
            tokens.index_copy_(0, index[: len(pairs)], drawn.index_select(0, index[len(pairs) :]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFeed:
    """A token that an earlier step has drawn: ``tokens[place]``, on the device."""

    tokens: Tensor
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """What rows of a chain must keep to: exclusive bounds of token ids and positions, and its KV groups' pools.

    ``virtual_tokens`` stand at the first positions, and only there may ids lie beyond the bound.
    """

    token_ids: int
    positions: int
    pages: tuple[int, ...]
    page_tokens: tuple[int, ...]
    windows: tuple[int | None, ...]
    virtual_tokens: tuple[int, ...] = ()


def token_batch(
    rows: Sequence[Row],
    members: Sequence[int],
    order: Sequence[int],
    *,
    device: torch.device,
    feeds: Mapping[int, DeviceFeed],
) -> TokenBatch:
    """``members``: rows that travel together; ``order[chain]``: where rows of a chain stand among them.

    ``feeds``: by row, of those whose one token only the device knows.
    """
    ordered = sorted(members, key=lambda i: (len(rows[i].tokens) > 1, order[rows[i].chain], i))
    tokens: list[int] = []
    positions: list[int] = []
    firsts: list[int] = []
    for i in ordered:
        row = rows[i]
        firsts.append(len(tokens))
        tokens += row.tokens
        positions += range(row.start, row.start + len(row.tokens))
    return TokenBatch(
        rows=tuple(ordered),
        firsts=tuple(firsts),
        counts=tuple(len(rows[i].tokens) for i in ordered),
        samples=tuple(rows[i].logits for i in ordered),
        token_ids=tuple(tokens),
        places=tuple(positions),
        device=device,
        feeds=tuple((first, feeds[i]) for i, first in zip(ordered, firsts, strict=True) if i in feeds) if feeds else (),
    )


def kv_rows(batch: TokenBatch, rows: Sequence[Row], groups: Sequence[int]) -> list[KvRow]:
    """The rows of ``batch`` in one KV group: ``groups[i]`` is its place in the page tables of the i-th."""
    return [
        KvRow(
            first=first,
            count=len(rows[i].tokens),
            start=rows[i].start,
            pages=rows[i].pages[group],
        )
        for i, first, group in zip(batch.rows, batch.firsts, groups, strict=True)
    ]


def row_problem(row: Row, limits: RowLimits) -> str | None:
    """Why the row cannot be run, or None."""
    count = len(row.tokens)
    end = row.start + count
    if not count or row.start < 0:
        return "a row holds at least one token at a position that is not negative"
    if end > limits.positions:
        return f"position {end - 1} lies beyond the model's {limits.positions}"
    virtual = limits.virtual_tokens[row.start : end]
    if row.tokens[: len(virtual)] != virtual:
        return f"positions 0 to {len(limits.virtual_tokens) - 1} are those of its fine-tune's virtual tokens"
    tokens = row.tokens[len(virtual) :]
    if tokens and (min(tokens) < 0 or max(tokens) >= limits.token_ids):
        return f"a token id lies outside 0 to {limits.token_ids - 1}"
    if not 0 <= row.samples <= row.logits <= count:
        return f"{row.logits} samples are asked of {count} tokens"
    if row.given and (min(row.given) < 0 or max(row.given) >= limits.token_ids):
        return f"a token id lies outside 0 to {limits.token_ids - 1}"
    if len(row.pages) != len(limits.pages):
        return f"{len(row.pages)} page tables for {len(limits.pages)} KV groups"
    for table, pages, page_tokens, window in zip(
        row.pages, limits.pages, limits.page_tokens, limits.windows, strict=True
    ):
        lowest = 0 if window is None else max(0, row.start - window + 1)
        needed = table[lowest // page_tokens : (end - 1) // page_tokens + 1]
        if len(table) * page_tokens < end or None in needed:
            return f"its page table does not cover positions {lowest} to {end - 1}"
        if min(needed) < 0 or max(needed) >= pages:  # type: ignore[type-var, operator]  # there is no None
            return f"a page lies outside the pool's {pages}"
    return None
