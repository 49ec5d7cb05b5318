"""Devices that are filled together, and what of them is left for the KV cache.

In: what chains keep, and a plan for its KV groups. Out: whether they fit, and pages. Bytes are those of all devices of
a cell. Invariant: every chain of a cell has pages for one sequence of full length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from blockc.ir.layout import page_share
from blockc.plan import ExecutionPlan
from blockc.simulate.stored import Stored

WIDTHS: Final = (1, 2, 4, 8)


@dataclass(slots=True)
class Cell:
    """``width`` devices of ``node``, with the chains that they hold."""

    width: int
    offered_bytes: int
    node: str = ""
    units: dict[str, int] = field(default_factory=dict)
    chains: list[int] = field(default_factory=list)
    own_bytes: int = 0

    @property
    def weights_bytes(self) -> int:
        """Of everything that it holds, each unit once."""
        return sum(self.units.values()) + self.own_bytes

    def added_bytes(self, model: Stored) -> int:
        """What a chain would add."""
        new = sum([nbytes for unit, nbytes in model.units.items() if unit not in self.units])
        return model.own_bytes + new

    def take(self, chain: int, model: Stored) -> None:
        """Hold a chain."""
        self.units |= model.units
        self.own_bytes += model.own_bytes
        self.chains.append(chain)


def device_bytes(plan: ExecutionPlan) -> int:
    """What a device offers for weights and pages: all are of the first one's kind."""
    device = plan.devices[plan.instances[0].devices[0]]
    return device.memory_bytes - device.reserve_bytes - max(entry.workspace_bytes for entry in plan.memory)


def fits(plan: ExecutionPlan, cell: Cell, chain: int, model: Stored, *, kv_bytes: int = 0) -> bool:
    """Whether it does beside one sequence of full length in each group, and ``kv_bytes`` more."""
    pages = least_pages(plan, [*cell.chains, chain])
    taken = cell.weights_bytes + cell.added_bytes(model) + pages_bytes(plan, pages, cell.width)
    return taken + kv_bytes <= cell.offered_bytes


def least_width(plan: ExecutionPlan, chain: int, model: Stored) -> int | None:
    """How many devices a chain needs; None: more than any cell has."""
    offered_bytes = device_bytes(plan)
    for width in WIDTHS:
        if fits(plan, Cell(width=width, offered_bytes=offered_bytes * width), chain, model):
            return width
    return None


def least_pages(plan: ExecutionPlan, chains: Sequence[int]) -> dict[int, int]:
    """By group, those of one sequence of full length."""
    least: dict[int, int] = {}
    for chain in chains:
        entry = plan.chains[chain]
        for kv in entry.kv:
            pages = -(-entry.max_model_len // plan.kv_groups[kv.group].page_tokens)
            least[kv.group] = max(least.get(kv.group, 0), pages)
    return least


def pages_bytes(plan: ExecutionPlan, pages: Mapping[int, int], width: int) -> int:
    """Of so many pages by group."""
    return sum(count * page_bytes(plan, group, width) for group, count in pages.items())


def page_bytes(plan: ExecutionPlan, group: int, width: int) -> int:
    """Of one page on all devices of a cell."""
    entry = plan.kv_groups[group]
    return width * page_share(entry.page_bytes, kv_heads=entry.kv_heads, devices=width)


def even_pages(plan: ExecutionPlan, cell: Cell) -> dict[int, int]:
    """What is left of a cell: as many full sequences in every group, up to a step's rows."""
    least = least_pages(plan, cell.chains)
    low, high = 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        if cell.weights_bytes + pages_bytes(plan, _grown(plan, least, middle), cell.width) <= cell.offered_bytes:
            low = middle
        else:
            high = middle - 1
    return _grown(plan, least, low)


def pages_by_need(plan: ExecutionPlan, cell: Cell, need_bytes: Mapping[int, float]) -> dict[int, int]:
    """What is left of a cell, divided as its groups need it; a full sequence of each comes first."""
    least = least_pages(plan, cell.chains)
    left = cell.offered_bytes - cell.weights_bytes - pages_bytes(plan, least, cell.width)
    whole = sum(need_bytes.get(group, 0.0) for group in least)
    if left <= 0 or whole <= 0:
        return least
    return {
        group: pages + int(left * need_bytes.get(group, 0.0) / whole) // page_bytes(plan, group, cell.width)
        for group, pages in least.items()
    }


def _grown(plan: ExecutionPlan, least: Mapping[int, int], permille: int) -> dict[int, int]:
    more = plan.batching.max_rows - 1
    return {group: pages + pages * more * permille // 1000 for group, pages in least.items()}
