"""One token at a time: the table's row, the fine-tune's change of it, or the fine-tune's own row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def embedding(
    ids: Sequence[int],
    table: Tensor,
    rows: Sequence[Mapping[int, Tensor]],
    low_rank: Sequence[tuple[Tensor, Tensor] | None],
) -> Tensor:
    """``table [vocab, hidden]``; for each token the rows that its fine-tune has, and A ``[r, vocab]``, B."""
    out = []
    for token, own, pair in zip(ids, rows, low_rank, strict=True):
        if token in own:
            out.append(own[token].float())
            continue
        row = table[token].float()
        out.append(row if pair is None else row + pair[1].float() @ pair[0][:, token].float())
    return torch.stack(out)
