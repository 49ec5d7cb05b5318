"""Cells: 1, 2, 4 or 8 devices of one kind in one node that run a chain together, each with an even share of it.

In: a problem. Out: cells with the chains on each, or None. Matrices and KV heads are split (tensor parallelism, arXiv
1909.08053), vectors and activations are on every device of a cell. A chain gets the narrowest cell that holds it, and
more only where nothing else fits. Invariant: on every device of every cell the least share fits what it offers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from blockc.place.greedy import orders
from blockc.place.problem import PlaceDevice, PlaceProblem
from blockc.place.sizes import Load, Sizes, resized, sizes_of

WIDTHS = (1, 2, 4, 8)

Cell = tuple[int, ...]  # devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Devices of a node that are alike: any of them make a cell."""

    devices: tuple[int, ...]
    offered_bytes: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the cells that it has room for."""
        return tuple(width for width in WIDTHS if width <= len(self.devices))


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """``assignment``: chain -> index into ``cells``."""

    cells: tuple[Cell, ...]
    assignment: tuple[int, ...]

    @property
    def devices(self) -> int:
        """How many it uses."""
        return sum(len(cell) for cell in self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """A problem with its sizes as a device of a cell sees them, by the cell's width, each computed when first asked."""

    problem: PlaceProblem
    max_model_len: int | None = None
    _known: dict[int, Sizes] = field(default_factory=dict)

    def at(self, width: int) -> Sizes:
        """A device's share of everything in a cell of this width."""
        if width not in self._known:
            self._known[width] = sizes_of(self.problem, width=width, max_model_len=self.max_model_len)
        return self._known[width]

    def with_devices(self, devices: tuple[PlaceDevice, ...]) -> Views:
        """The same chains on other devices."""
        return self.with_problem(replace(self.problem, devices=devices))

    def with_problem(self, problem: PlaceProblem) -> Views:
        """The same models, of which something else is expected, on other devices or under other rules."""
        known = {width: resized(sizes, problem, width) for width, sizes in self._known.items()}
        return Views(problem=problem, max_model_len=self.max_model_len, _known=known)

    def blocks(self) -> tuple[Block, ...]:
        """The devices, node by node and kind by kind."""
        alike: dict[tuple[str, str, int, int, Fraction | None], list[int]] = {}
        for index, device in enumerate(self.problem.devices):
            node = device.address.split("/")[0]
            key = (node, device.kind, device.memory_bytes, device.reserve_bytes, device.price_per_hour)
            alike.setdefault(key, []).append(index)
        return tuple(
            Block(devices=tuple(indices), offered_bytes=self.problem.devices[indices[0]].offered_bytes)
            for indices in alike.values()
        )

    def least_width(self, chain: int, block: Block) -> int | None:
        """The narrowest cell of a block that holds the chain alone."""
        return next(
            (width for width in block.widths if self.at(width).least([chain]).used_bytes <= block.offered_bytes), None
        )


def all_fit(views: Views) -> bool:
    """Whether there is a cell for each chain alone. If not, there is no placement."""
    blocks = views.blocks()
    chains = range(len(views.problem.chains))
    return all(any(views.least_width(chain, block) is not None for block in blocks) for chain in chains)


def fill_cells(views: Views) -> CellPlan | None:
    """The cells with the fewest devices found, no wider than they have to be."""
    blocks = views.blocks()
    chains = range(len(views.problem.chains))
    least = [[views.least_width(chain, block) for block in blocks] for chain in chains]
    for floor in WIDTHS:
        wanted = [[_at_least(width, floor, block) for width, block in zip(row, blocks, strict=True)] for row in least]
        found = [plan for order in orders(views.at(1)) if (plan := _fill(views, blocks, wanted, order)) is not None]
        if found:
            return min(found, key=lambda plan: plan.devices)
    return None


def _at_least(width: int | None, floor: int, block: Block) -> int | None:
    return None if width is None else max(width, min(floor, block.widths[-1]))


def _fill(
    views: Views, blocks: Sequence[Block], wanted: Sequence[Sequence[int | None]], order: Sequence[int]
) -> CellPlan | None:
    """Each chain to the open cell, wide enough, where it adds least; else to a new one of as few devices as can be."""
    free = [list(block.devices) for block in blocks]
    cells: list[tuple[int, Cell, Load]] = []  # block, devices, load
    place: dict[int, int] = {}
    for chain in order:
        options = []
        for index, (block, cell, load) in enumerate(cells):
            width = wanted[chain][block]
            if width is None or width > len(cell):
                continue
            nbytes = load.used_with(chain)
            if nbytes <= blocks[block].offered_bytes:
                options.append(((nbytes - load.used_bytes) * len(cell), index))
        if options:
            index = min(options)[1]
        else:
            closed = [
                (width, -blocks[block].offered_bytes, block)
                for block, width in enumerate(wanted[chain])
                if width is not None and width <= len(free[block])
            ]
            if not closed:
                return None
            width, _, block = min(closed)
            index = len(cells)
            cells.append((block, tuple(free[block][:width]), Load(views.at(width))))
            del free[block][:width]
        cells[index][2].add(chain)
        place[chain] = index
    ranked = sorted(range(len(cells)), key=lambda index: cells[index][1])
    position = {index: rank for rank, index in enumerate(ranked)}
    return CellPlan(
        cells=tuple(cells[index][1] for index in ranked),
        assignment=tuple(position[place[chain]] for chain in range(len(place))),
    )
