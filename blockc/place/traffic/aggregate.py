"""Bounds on devices or their cost: a closed form, and the packing without saying which cell (types and counts).

In: a packing. Out: what no packing does without, and how that is known. Cells of one kind, cadence and
limit are interchangeable, so the model counts them: ``N[t]`` cells, ``n[a, t]`` of them with item a, ``y[c, t]`` of
the load of class c. Every packing gives such counts, so what these need at least, packings do. Three families of rows
make it tight: what a cell has left beside the cheapest path through an item (room), items only where the items that
all their chains pass are (nesting), and widths that nodes can hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from blockc.place.traffic.goals import counted, most_spent, next_sum, step_of, weights
from blockc.place.traffic.packing import CellKind, Packing, most_copies

# Chains alike are one class of this many parts. Shares are rounded down, and the sum of rounded shares is what has to
# be there: no packing is lost.
_SHARES: Final = 10_000
_MIB: Final = 1 << 20
# Parts of a cell's time that one unit of the model's whole numbers stands for.
_PARTS_UNIT: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """``value``: no packing spends less. ``kind``: what proves it. ``units``: of deterministic time that it took."""

    value: int
    kind: str
    infeasible: bool = False
    units: float = 0.0


def closed_form(packing: Packing) -> Bound:
    """Every unit and one sweep of every item, each where it takes the smallest part of what a cell weighs.

    Or every unit with sweeps of its own in full steps, if that is more.
    """
    goal = counted(packing)
    found = cheapest_parts(packing, weights(packing, goal))
    count = found if goal == "devices" else cheapest_parts(packing, weights(packing, "devices"))
    if found is None or count is None or count > packing.devices:
        most = most_spent(packing) + 1
        return Bound(value=most if found is None else max(most, found), kind="closed form", infeasible=True)
    return Bound(value=found, kind="closed form")


def cheapest_parts(packing: Packing, weight: Sequence[int]) -> int | None:
    """What is spent at least, however many devices there are. ``weight``: of each kind of cell.

    None: some group can be nowhere, or not in as many places as it is to be.
    """
    busy = paced = memory = 0.0
    least = min(weight, default=1)
    of_item: list[list[int]] = [[] for _ in range(packing.items)]
    for number, group in enumerate(packing.groups):
        able = [(kind, weight[index]) for index, kind in enumerate(packing.kinds) if packing.can(index, number)]
        cells, nodes = most_copies(packing, number)
        if not able or cells < group.replicas or nodes < group.nodes:
            return None
        least = max(least, group.copies * min(own for _, own in able))
        busy += group.units * min(kind.unit_parts[number] * own / kind.limit[number] for kind, own in able)
        paced += min(packing.paced_parts(kind, number, group.units) * own / kind.limit[number] for kind, own in able)
        memory += group.units * min(kind.unit_bytes[number] * own / kind.offered_bytes for kind, own in able)
        for item in group.items:
            of_item[item].append(number)
    for item, users in enumerate(of_item):
        slowest = max((tau for user in users if (tau := packing.groups[user].tau_ns) is not None), default=None)
        found = [
            (
                0.0
                if slowest is None
                else kind.item_ns[item] * 1e7 / slowest * own / max(kind.limit[user] for user in users),
                kind.item_bytes[item] * own / kind.offered_bytes,
            )
            for kind, own in zip(packing.kinds, weight, strict=True)
            if max(kind.limit[user] for user in users) > 0
        ]
        copies = max(packing.groups[user].copies for user in users)
        busy += copies * min(parts for parts, _ in found)
        memory += copies * min(nbytes for _, nbytes in found)
    return next_sum(weight, max(least, _ceil(max(busy, paced, memory))))


def _ceil(value: float) -> int:
    """Rounded up, but not for what floating point adds."""
    return -int(-(value - 1e-6) // 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """Groups alike. ``parts``, ``paced``, ``nbytes``: of one share on each kind.

    ``paced``: with the sweeps of full steps; ``items``: those that it has with others.
    """

    groups: tuple[int, ...]
    items: tuple[int, ...]
    shares: int
    tau_ns: int | None
    single: bool
    parts: tuple[float, ...]
    paced: tuple[float, ...]
    nbytes: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellType:
    """Cells of a kind that sweep at a cadence and may be busy up to a limit."""

    kind: int
    tau_ns: int | None
    limit: int


def _classes_of(packing: Packing) -> list[_Class]:
    """Groups that pass the same shared items with the same targets, together, where there are several."""
    users: dict[int, int] = {}
    for group in packing.groups:
        for item in group.items:
            users[item] = users.get(item, 0) + 1
    alike: dict[tuple[Any, ...], list[int]] = {}
    for number, group in enumerate(packing.groups):
        shared = tuple(item for item in group.items if users[item] > 1)
        limits = tuple(kind.limit[number] for kind in packing.kinds)
        able = tuple(packing.can(kind, number) for kind in range(len(packing.kinds)))
        alike.setdefault((shared, group.tau_ns, limits, able), []).append(number)
    found = []
    for members in alike.values():
        group = packing.groups[members[0]]
        single = len(members) == 1
        items = group.items if single else tuple(item for item in group.items if users[item] > 1)
        shares = group.units if single else _SHARES
        parts, paced, nbytes = [], [], []
        for kind in packing.kinds:
            busy = memory = 0.0
            for member in members:
                other = packing.groups[member]
                busy += other.units * kind.unit_parts[member]
                memory += other.units * kind.unit_bytes[member]
                if not single:
                    private = [item for item in other.items if users[item] == 1]
                    memory += sum(kind.item_bytes[item] for item in private)
                    if other.tau_ns is not None:
                        busy += sum(kind.item_ns[item] for item in private) * 1e7 / other.tau_ns
            parts.append(busy / shares)
            paced.append(sum(packing.paced_parts(kind, g, packing.groups[g].units) for g in members) / shares)
            nbytes.append(memory / shares)
        found.append(
            _Class(
                groups=tuple(members), items=items, shares=shares, tau_ns=group.tau_ns, single=single,
                parts=tuple(parts), paced=tuple(paced), nbytes=tuple(nbytes),
            )
        )  # fmt: skip
    return found


def _types_of(packing: Packing) -> list[CellType]:
    taus: list[int | None] = [*sorted({group.tau_ns for group in packing.groups if group.tau_ns is not None})]
    if any(group.tau_ns is None for group in packing.groups):
        taus.append(None)
    found = []
    for number, kind in enumerate(packing.kinds):
        limits = sorted({limit for limit in kind.limit if limit > 0})
        found += [CellType(kind=number, tau_ns=tau, limit=limit) for tau in taus for limit in limits]
    return found


def aggregate(packing: Packing, *, units: float, least: int, most: int, seed: int) -> Bound:
    """The bound of the counting model. ``units``: of deterministic time; ``least``, ``most``: known before."""
    model = Aggregate(packing)
    return model.solve(units=units, least=least, most=most, seed=seed)


class Aggregate:
    """The model."""

    def __init__(self, packing: Packing) -> None:
        from ortools.sat.python import cp_model

        self.cp = cp_model
        self.model: Any = cp_model.CpModel()
        self.packing = packing
        self.classes = _classes_of(packing)
        self.types = _types_of(packing)
        self.through = self._through()
        self.cells = [
            self.model.new_int_var(0, packing.devices // packing.kinds[t.kind].width, f"N{i}")
            for i, t in enumerate(self.types)
        ]
        self.y = [[self._share(c, t) for t in range(len(self.types))] for c in range(len(self.classes))]
        self.copies: list[dict[int, Any]] = []
        for t in range(len(self.types)):
            self.copies.append(self._copies(t))
            self._room(t)
            self._capacity(t)
        for number, own in enumerate(self.classes):
            shares = [share for share in self.y[number] if share is not None]
            lost = 0 if own.single else max(0, len(shares) - 1)
            self.model.add(sum(shares) >= own.shares - lost)
        self._spread()
        self._devices()
        weight = weights(packing)
        self.step = step_of(weight)
        # In whole steps: of prices in millionths no solver has to see more than what tells them apart.
        self.objective = sum(weight[t.kind] // self.step * self.cells[i] for i, t in enumerate(self.types))

    def solve(self, *, units: float, least: int, most: int, seed: int) -> Bound:
        """Minimise what is spent, of which ``least`` to ``most`` are to be told apart."""
        self.model.add(self.objective >= least // self.step)
        self.model.add(self.objective <= max(most, least) // self.step)
        self.model.minimize(self.objective)
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = seed
        solver.parameters.max_deterministic_time = units
        solver.parameters.linearization_level = 2
        status = solver.solve(self.model)
        spent = solver.response_proto.deterministic_time
        if status == self.cp.INFEASIBLE:
            # Of a packing that is known this cannot be: then the solver errs, and proves nothing.
            return Bound(value=least, kind="counts", infeasible=True, units=spent)
        bound = next_sum(weights(self.packing), self.step * -int(-(solver.best_objective_bound - 1e-6) // 1))
        return Bound(value=max(least, min(most, bound)), kind="counts", units=spent)

    def _through(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(self.packing.items)]
        for number, own in enumerate(self.classes):
            for item in own.items:
                found[item].append(number)
        return found

    def _share(self, c: int, t: int) -> Any | None:
        own, type_ = self.classes[c], self.types[t]
        kind = self.packing.kinds[type_.kind]
        if own.tau_ns is not None and (type_.tau_ns is None or type_.tau_ns > own.tau_ns):
            return None
        if any(kind.limit[group] < type_.limit for group in own.groups):
            return None
        if not all(self.packing.can(type_.kind, group) for group in own.groups):
            return None
        if self._fixed(kind, own.items, type_) >= type_.limit:
            return None
        return self.model.new_int_var(0, own.shares, f"y{c}_{t}")

    def _fixed(self, kind: CellKind, items: Sequence[int], type_: CellType) -> int:
        return kind.fixed_parts(sum(kind.item_ns[item] for item in items), type_.tau_ns)

    def _copies(self, t: int) -> dict[int, Any]:
        """``n[a, t]`` for items that some class can take here."""
        found: dict[int, Any] = {}
        most = self.packing.devices // self.packing.kinds[self.types[t].kind].width
        for item, classes in enumerate(self.through):
            if any(self.y[c][t] is not None for c in classes):
                found[item] = self.model.new_int_var(0, most, f"n{item}_{t}")
                self.model.add(found[item] <= self.cells[t])
        users = {item: frozenset(c for c in self.through[item] if self.y[c][t] is not None) for item in found}
        for item in found:
            parents = [other for other in found if users[item] < users[other]]
            if parents:
                parent = min(parents, key=lambda other: (len(users[other]), other))
                self.model.add(found[item] <= found[parent])
        for c, own in enumerate(self.classes):
            share = self.y[c][t]
            if share is not None and own.shares == 1:
                for item in own.items:
                    self.model.add(share <= found[item])
        return found

    def _room(self, t: int) -> None:
        """What passes an item fits into the cells that have it.

        There it stands beside the cheapest path through the item; and beside all items that every chain through it
        passes (those above it) and those that only such chains pass (below it), each as often as it is there.
        """
        type_ = self.types[t]
        kind = self.packing.kinds[type_.kind]
        users = {i: frozenset(c for c in self.through[i] if self.y[c][t] is not None) for i in self.copies[t]}
        for item, count in self.copies[t].items():
            own = users[item]
            fixed = min(self._fixed(kind, self.classes[c].items, type_) for c in own)
            held = min(sum(kind.item_bytes[i] for i in self.classes[c].items) for c in own)
            least = min(kind.activation[g] for c in own for g in self.classes[c].groups)
            parts = [(self.classes[c].parts[type_.kind], self.y[c][t]) for c in own]
            nbytes = [(self.classes[c].nbytes[type_.kind], self.y[c][t]) for c in own]
            self._at_most(parts, [], (type_.limit - fixed, count), _PARTS_UNIT)
            self._at_most(nbytes, [], (kind.offered_bytes - held - least, count), _MIB)
            above = [i for i in users if users[i] >= own]
            below = [i for i in users if users[i] < own]
            if below:
                room = type_.limit - self._fixed(kind, above, type_)
                self._at_most(
                    parts, [(self._sweep(kind, i, type_), self.copies[t][i]) for i in below], (room, count), _PARTS_UNIT
                )
                room = kind.offered_bytes - least - sum(kind.item_bytes[i] for i in above)
                self._at_most(
                    nbytes, [(float(kind.item_bytes[i]), self.copies[t][i]) for i in below], (room, count), _MIB
                )

    def _sweep(self, kind: CellKind, item: int, type_: CellType) -> float:
        """Parts of one sweep of an item."""
        return 0.0 if type_.tau_ns is None else kind.item_ns[item] * 1e7 / type_.tau_ns

    def _capacity(self, t: int) -> None:
        type_ = self.types[t]
        kind = self.packing.kinds[type_.kind]
        shares = [(own, self.y[c][t]) for c, own in enumerate(self.classes) if self.y[c][t] is not None]
        if not shares:
            self.model.add(self.cells[t] == 0)
            return
        sweeps = [
            (0.0 if type_.tau_ns is None else kind.item_ns[item] * 1e7 / type_.tau_ns, count)
            for item, count in self.copies[t].items()
        ]
        held = [(float(kind.item_bytes[item]), count) for item, count in self.copies[t].items()]
        least = min(kind.activation[group] for own, _ in shares for group in own.groups)
        step = kind.fixed_parts(0, type_.tau_ns)
        cells = self.cells[t]
        self._at_most(
            [(own.parts[type_.kind], y) for own, y in shares], sweeps, (type_.limit - step, cells), _PARTS_UNIT
        )
        self._at_most(
            [(own.nbytes[type_.kind], y) for own, y in shares], held, (kind.offered_bytes - least, cells), _MIB
        )
        self._at_most([(own.paced[type_.kind], y) for own, y in shares], [], (type_.limit, cells), _PARTS_UNIT)

    def _at_most(
        self, shares: list[tuple[float, Any]], items: list[tuple[float, Any]], room: tuple[int, Any], unit: int
    ) -> None:
        """``sum <= room``, in whole numbers that lose no packing: demands rounded down, room up.

        Shares are small, so they are counted in finer units.
        """
        finest = min((amount for amount, _ in shares if amount > 0), default=float(unit))
        scale = max(1, min(1000, round(100 * unit / max(finest, 1e-9))))
        terms = [int(amount * scale // unit) * var for amount, var in (*shares, *items)]
        self.model.add(sum(terms) <= -(-room[0] * scale // unit) * room[1])

    def _spread(self) -> None:
        """What is to be in several cells has as many, and each of its items is there as often."""
        for group, own in enumerate(self.packing.groups):
            if own.copies > 1:
                able = [self.packing.can(t.kind, group) for t in self.types]
                self.model.add(sum(itertools.compress(self.cells, able)) >= own.copies)
                for item in own.items:
                    there = [found[item] for found in self.copies if item in found]
                    if there:
                        self.model.add(sum(there) >= own.copies)

    def _devices(self) -> None:
        """As many of each kind as there are, and as many wide ones as nodes hold."""
        packing = self.packing
        by_device: dict[tuple[str, int, int], list[int]] = {}
        for number, kind in enumerate(packing.kinds):
            by_device.setdefault((kind.device, kind.offered_bytes, kind.price // kind.width), []).append(number)
        for kinds in by_device.values():
            blocks = [block for block in packing.blocks if set(block.kinds) & set(kinds)]
            for least in sorted({packing.kinds[kind].width for kind in kinds}):
                self.model.add(
                    sum(
                        packing.kinds[t.kind].width // least * self.cells[i]
                        for i, t in enumerate(self.types)
                        if t.kind in kinds and packing.kinds[t.kind].width >= least
                    )
                    <= sum(len(block.devices) // least for block in blocks)
                )
