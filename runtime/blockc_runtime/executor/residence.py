"""Fine-tunes that take turns in the slots of their bank.

In: chains to read ahead, and which slot each is put in. Out: banks, one for each limited bank in each segment, whose
slots change between two steps. Invariant: a chain is in a bank's ``slots`` exactly while all its sides are in its slot,
in every segment; a row of a chain that is in none is refused, never run without its fine-tune.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch

from blockc.ir.layout import READ_AHEAD
from blockc_runtime.executor.beside import ReadStream, problem_of
from blockc_runtime.executor.sides import Bank, Stacks
from blockc_runtime.executor.slots import fill, tensors_in
from blockc_runtime.step import SlotFill

# Segment: the stacks of one fine-tune there, with one slot.
ReadSides = Mapping[int, Stacks]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedBank:
    """A bank with ``count`` slots: ``banks`` by segment, all of them with the same ``slots`` (chain -> slot)."""

    number: int
    count: int
    slots: dict[int, int] = field(default_factory=dict)
    banks: dict[int, Bank] = field(default_factory=dict)


class Residence:
    """``bank_of``: chains of limited banks; ``read``: reads the sides of one, on the ``reader``'s thread, or here."""

    def __init__(
        self,
        banks: Mapping[int, LimitedBank],
        bank_of: Mapping[int, int],
        *,
        read: Callable[[int], ReadSides],
        device: torch.device,
        reader: ThreadPoolExecutor,
    ) -> None:
        self._banks = banks
        self._bank_of = bank_of
        self._read = read
        self._device = device
        self._ahead: OrderedDict[int, ReadSides] = OrderedDict()
        self._lock = Lock()  # of what is ahead
        self._stream = ReadStream(device)
        self._news: deque[tuple[int, str | None]] = deque()
        self._reader = reader

    def is_missing(self, chain: int) -> bool:
        """Whether a chain would have to be in a slot and is in none."""
        bank = self._bank_of.get(chain)
        return bank is not None and chain not in self._banks[bank].slots

    def prefetch(self, chain: int) -> None:
        """Begin to read a chain's sides."""
        self._reader.submit(self._prefetch, chain)

    def prefetched(self) -> list[tuple[int, str | None]]:
        """Chains that have been read since the last call, and why not if they could not be."""
        return list(self._drain())

    def put(self, entry: SlotFill) -> None:
        """Fill a slot, with what was read ahead or, if that is gone, with what is read now."""
        with self._lock:
            found = self._ahead.pop(entry.chain, None)
        sides = self._read(entry.chain) if found is None else found
        bank = self._banks[self._bank_of[entry.chain]]
        for chain in [chain for chain, slot in bank.slots.items() if slot == entry.slot]:
            del bank.slots[chain]
        for segment, stacks in sides.items():
            for place, one in stacks.items():
                fill(bank.banks[segment].weights[place], entry.slot, one)
                self._in_use(one)
        bank.slots[entry.chain] = entry.slot

    def _drain(self) -> Iterator[tuple[int, str | None]]:
        while self._news:
            yield self._news.popleft()

    def _prefetch(self, chain: int) -> None:
        try:
            sides = self._stream.run(lambda: self._read(chain))
        except Exception as error:
            self._news.append((chain, problem_of(error)))
        else:
            with self._lock:
                self._ahead[chain] = sides
                while len(self._ahead) > READ_AHEAD:
                    self._ahead.popitem(last=False)
            self._news.append((chain, None))

    def _in_use(self, sides: Any) -> None:
        """What was read on a stream of its own is not given out again there before the steps are done with it."""
        if self._device.type == "cuda":
            steps = torch.cuda.current_stream(self._device)
            for tensor in tensors_in(sides):
                tensor.record_stream(steps)
