"""The table look-up with sides, on any device.

In: token ids, a table, and for each bank its sides and who uses them. Out: a vector for each token. Invariant: equals
`reference.py`; ids beyond the table are looked up only in rows of the fine-tune that has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding as look_up

from blockc_runtime.ops.sides import SideBatch, SideSet


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRows:
    """Rows that a fine-tune replaces or adds: ``index [n]`` ascending, ``weight [n, hidden]``."""

    index: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSides:
    """One bank at one table. ``a [N, vocab, r]``, ``b [N, r, hidden]`` with the scale folded in; ``rows`` by slot.

    ``extends``: whether any of the rows lie beyond the table.
    """

    a: Tensor | None = None
    b: Tensor | None = None
    rows: Sequence[TableRows] = ()
    extends: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        stacks = sum(stack.nbytes for stack in (self.a, self.b) if stack is not None)
        return stacks + sum(rows.index.nbytes + rows.weight.nbytes for rows in self.rows)


def embedding(ids: Tensor, table: Tensor, sides: SideSet) -> Tensor:
    """``ids [1, T]``, ``table [vocab, hidden]`` -> ``[1, T, hidden]``."""
    if not sides:
        return look_up(ids, table)
    known = ids.clamp(max=len(table) - 1) if any(side.extends for side, _ in sides) else ids
    out = look_up(known, table)
    for side, batch in sides:
        if side.a is not None:
            _add_low_rank(out[0], known[0], side, batch)
        if side.rows:
            _replace_rows(out[0], ids[0], side, batch)
    return out


def _add_low_rank(out: Tensor, ids: Tensor, side: EmbeddingSides, batch: SideBatch) -> None:
    assert side.a is not None
    assert side.b is not None
    inner = side.a[batch.slots, ids.index_select(0, batch.tokens)]
    out.index_add_(0, batch.tokens, torch.bmm(inner.unsqueeze(1), side.b.index_select(0, batch.slots)).squeeze(1))


def _replace_rows(out: Tensor, ids: Tensor, side: EmbeddingSides, batch: SideBatch) -> None:
    for slot, places in batch.by_slot:
        rows = side.rows[slot]
        wanted = ids.index_select(0, places)
        nearest = torch.searchsorted(rows.index, wanted).clamp_(max=len(rows.index) - 1)
        replaced = rows.index.index_select(0, nearest) == wanted
        own = torch.where(replaced[:, None], rows.weight.index_select(0, nearest), out.index_select(0, places))
        out.index_copy_(0, places, own)
