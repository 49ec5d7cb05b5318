"""The table look-up, on any device."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding as look_up

from blockc_runtime.ops.sides import SideSet


def embedding(ids: Tensor, table: Tensor, sides: SideSet) -> Tensor:
    """``ids [1, T]``, ``table [vocab, hidden]`` -> ``[1, T, hidden]``."""
    assert not sides
    return look_up(ids, table)
