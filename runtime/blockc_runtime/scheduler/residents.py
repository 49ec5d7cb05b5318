"""Which fine-tunes are in memory: their sides, where a bank has fewer slots than fine-tunes, and blocks of their own.

In: chains that are wanted, held and let go, and news of what has been read. Out: what to read next, and which slot a
fine-tune's sides are put in. Blocks have a room (`room.py`) and no slots. Invariant: a slot is given away only while no
running request uses what is in it; the one whose last request ended first goes first (slots of a bank cost the same to
fill, so the least recently used is the cheapest).

Nobody overtakes who is next in turn and waits for a slot: the bank's running requests end, so there will be one. What
is only being read does not hold up others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from blockc.ir.layout import READ_AHEAD
from blockc_runtime.limits import EngineLimits
from blockc_runtime.scheduler.room import Room
from blockc_runtime.step import SlotFill

# What a request may have to wait for: a KV group by its index, a slot of a bank, or sides and blocks of a chain.
Need = int | tuple[str, int]


def chain_needs(limits: EngineLimits) -> tuple[tuple[Need, ...], ...]:
    """For each chain what its requests may have to wait for."""
    return tuple(
        (
            *chain.groups,
            *(() if chain.bank is None else (("bank", chain.bank),)),
            *(() if chain.bank is None and limits.turns.keys().isdisjoint(chain.segments) else (("chain", index),)),
        )
        for index, chain in enumerate(limits.chains)
    )


class Residents:
    """Slots of the limited banks. Chains of other banks are always there. ``room``: of the blocks that take turns."""

    def __init__(self, limits: EngineLimits) -> None:
        self.room = Room(limits)
        self._bank_of = tuple(chain.bank for chain in limits.chains)
        self._bank_slots = dict(limits.bank_slots)
        self._holders: Counter[int] = Counter()  # running requests by chain
        self._problems: dict[int, str] = {}
        self.loads = 0
        self.forget()

    def forget(self) -> None:
        """The worker was lost: nothing is in memory, whoever runs."""
        self.room.forget()
        self._slot_of: dict[int, int] = {}
        self._free = {bank: list(range(slots - 1, -1, -1)) for bank, slots in self._bank_slots.items()}
        # Least recently used first.
        self._idle: dict[int, OrderedDict[int, None]] = {bank: OrderedDict() for bank in self._bank_slots}
        self._read: set[int] = set()
        self._reading: set[int] = set()
        self._wanted: list[int] = []
        self._fills: list[SlotFill] = []

    @property
    def is_reading(self) -> bool:
        """Whether anything is being read."""
        return bool(self._reading) or self.room.is_reading

    def problem(self, chain: int) -> str | None:
        """What to tell its requests, if it cannot be read."""
        return self._problems.get(chain) or self.room.problem(chain)

    def lacking(self, chain: int) -> Need | None:
        """What a request of ``chain`` would have to wait for; asks for what it lacks to be read. None: it may start."""
        if not self.room.is_there(chain):
            return "chain", chain
        bank = self._bank_of[chain]
        if bank is None or chain in self._slot_of:
            return None
        if chain not in self._read and chain not in self._reading:
            if len(self._reading) >= READ_AHEAD:
                return "bank", bank
            self._reading.add(chain)
            self._wanted.append(chain)
        if not self._free[bank] and not self._idle[bank]:
            return "bank", bank
        return None if chain in self._read else ("chain", chain)

    def hold(self, chain: int) -> None:
        """A request of ``chain``, which lacks nothing, runs from now on."""
        self.room.hold(chain)
        bank = self._bank_of[chain]
        if bank is None:
            return
        self._holders[chain] += 1
        self._idle[bank].pop(chain, None)
        if chain not in self._slot_of:
            self._slot_of[chain] = slot = self._free[bank].pop() if self._free[bank] else self._evict(bank)
            self._read.discard(chain)
            self.loads += 1
            self._fills.append(SlotFill(chain=chain, slot=slot))

    def release(self, chain: int) -> None:
        """A request of ``chain`` does not run any more."""
        self.room.release(chain)
        bank = self._bank_of[chain]
        if bank is None:
            return
        self._holders[chain] -= 1
        if not self._holders[chain] and chain in self._slot_of:
            self._idle[bank][chain] = None

    def arrived(self, chain: int, problem: str | None) -> None:
        """The sides of ``chain`` have been read, or cannot be."""
        if chain not in self._reading:
            return  # asked for before a worker was lost
        self._reading.discard(chain)
        if problem is None:
            self._read.add(chain)
        else:
            self._problems[chain] = f"its fine-tune could not be loaded: {problem}"

    def take_wanted(self) -> Sequence[int]:
        """Chains whose sides are to be read, since the last time."""
        wanted, self._wanted = self._wanted, []
        return wanted

    def take_fills(self) -> tuple[SlotFill, ...]:
        """What a step has to put in slots before it runs, since the last one."""
        fills, self._fills = self._fills, []
        return tuple(fills)

    def _evict(self, bank: int) -> int:
        victim, _ = self._idle[bank].popitem(last=False)
        return self._slot_of.pop(victim)
