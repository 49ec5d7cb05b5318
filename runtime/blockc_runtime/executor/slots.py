"""Stacks whose slots are filled one after the other, while the others are in use.

In: what `stacks.stack` makes of one fine-tune. Out: the same with many slots, and any of them filled in place, so that
whoever keeps a stack or its address need not be told. Invariant: filling a slot changes no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from blockc_runtime.ops.cache.cpu import CachedKv
from blockc_runtime.ops.embedding.cpu import EmbeddingSides
from blockc_runtime.ops.linear.sides import LowRankOutput, LowRankWeights, OutputSides, SideWeights
from blockc_runtime.ops.residual.cpu import Bottlenecks

_T = TypeVar("_T")

# Makes zeros of a shape like those of a tensor.
Zeros = Callable[[tuple[int, ...], Any], Tensor]

# Fields with one entry for each slot, beside tensors, whose first dimension is always that.
_BY_SLOT: Mapping[type, frozenset[str]] = {
    CachedKv: frozenset({"keys", "values"}),
    EmbeddingSides: frozenset({"rows"}),
    OutputSides: frozenset({"rows", "additive"}),
}
_STACKS = (Bottlenecks, CachedKv, EmbeddingSides, LowRankOutput, LowRankWeights, OutputSides, SideWeights)


def with_slots(one: _T, slots: int, zeros: Zeros) -> _T:
    """Like ``one``, which has one slot, with ``slots`` of them; what is in them has no meaning yet."""
    made: Any
    if isinstance(one, Tensor):
        return zeros((slots, *one.shape[1:]), one.dtype)  # type: ignore[return-value]
    if isinstance(one, tuple):
        return tuple(with_slots(item, slots, zeros) for item in one)  # type: ignore[return-value]
    if isinstance(one, dict):  # what others have worked out of `one`
        return {}  # type: ignore[return-value]
    if not isinstance(one, _STACKS):
        return one
    made = {
        name: list(value) * slots if by_slot else with_slots(value, slots, zeros)
        for name, value, by_slot in _fields(one)
    }
    if isinstance(one, EmbeddingSides):  # whether any slot does is not known before it is filled
        made["extends"] = bool(one.rows)
    return replace(one, **made)


def fill(stack: Any, slot: int, one: Any) -> None:
    """Put ``one``, which has one slot and is like what the stack was made of, in place of what was in ``slot``."""
    if isinstance(stack, Tensor):
        stack[slot].copy_(one[0])
    elif isinstance(stack, tuple):
        for part, own in zip(stack, one, strict=True):
            fill(part, slot, own)
    elif isinstance(stack, _STACKS):
        for (_, held, by_slot), (_, own, _) in zip(_fields(stack), _fields(one), strict=True):
            if not by_slot:
                fill(held, slot, own)
            elif held:
                held[slot] = own[0]


def tensors_in(stack: Any) -> Iterator[Tensor]:
    """All tensors of a stack."""
    if isinstance(stack, Tensor):
        yield stack
    elif isinstance(stack, list | tuple):
        for item in stack:
            yield from tensors_in(item)
    elif isinstance(stack, dict):
        yield from tensors_in(list(stack.values()))
    elif is_dataclass(stack):
        for item in fields(stack):
            yield from tensors_in(getattr(stack, item.name))


def _fields(stack: Any) -> list[tuple[str, Any, bool]]:
    """Name, value, and whether it has one entry for each slot."""
    assert is_dataclass(stack)
    by_slot = _BY_SLOT.get(type(stack), frozenset())
    return [(item.name, getattr(stack, item.name), item.name in by_slot) for item in fields(stack)]
