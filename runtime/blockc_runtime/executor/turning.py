"""Segments whose weights are in memory by turns.

In: segments to read, and others to let go before. Out: what is in memory, segment by segment, changed between two
steps. Invariants: a segment has all its weights or none; a row of a chain that lacks some is refused, never run
without them; reading touches nothing that a step uses.

Weights are made where they stay, by a thread beside the steps: nothing is copied before a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from blockc.ir import TensorRef
from blockc_runtime.executor.beside import ReadStream, problem_of
from blockc_runtime.executor.segment import LoadedSegment
from blockc_runtime.executor.weights import WeightStore
from blockc_runtime.step import SegmentTurn


class FillSegment(Protocol):
    """Makes a segment with its weights, which ``store`` reads."""

    def __call__(self, segment: int, store: WeightStore, /) -> LoadedSegment:
        """Raises `DiagnosticError` for weights that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turning:
    """A segment that takes turns. ``empty``: without weights. ``from_host``: what was read stays in host memory."""

    empty: LoadedSegment
    from_host: bool


class TurningBlocks:
    """``segments`` is the model's own list; ``segments_of``: those of each chain.

    ``reader``: one thread, by which sides are read, too: they share a drive.
    """

    def __init__(
        self,
        turning: Mapping[int, Turning],
        segments_of: Sequence[Sequence[int]],
        segments: MutableSequence[LoadedSegment],
        *,
        store: WeightStore,
        fill: FillSegment,
        reader: ThreadPoolExecutor,
    ) -> None:
        self._turning = turning
        self._segments_of = [[segment for segment in own if segment in turning] for own in segments_of]
        self._segments = segments
        self._store = store
        self._fill = fill
        self._reader = reader
        self._here: dict[int, WeightStore] = {}
        self._news: deque[tuple[int, LoadedSegment, WeightStore] | tuple[int, str]] = deque()
        self._hosts = {number: HostCopies(store) for number, entry in turning.items() if entry.from_host}
        self._stream = ReadStream(store.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that are there."""
        return sum(store.nbytes for store in self._here.values())

    @property
    def mapped_bytes(self) -> int:
        """Those of them that are the zoo's own files."""
        return sum(store.mapped_bytes for store in self._here.values())

    def __contains__(self, segment: object) -> bool:
        """Whether it takes turns."""
        return segment in self._turning

    def is_missing(self, chain: int) -> bool:
        """Whether a segment of a chain has no weights now."""
        return any(segment not in self._here for segment in self._segments_of[chain])

    def bring(self, turn: SegmentTurn) -> None:
        """Let weights go, then begin to read a segment's."""
        for segment in turn.out:
            self._let_go(segment)
        self._reader.submit(self._read, turn.segment)

    def brought(self) -> list[tuple[int, str | None]]:
        """Segments that have been read since the last call, and are there from now on; why not if they could not be."""
        found: list[tuple[int, str | None]] = []
        while self._news:
            news = self._news.popleft()
            if len(news) == 3:
                segment, loaded, store = news
                self._segments[segment], self._here[segment] = loaded, store
                found.append((segment, None))
            else:
                found.append(news)
        return found

    def _let_go(self, segment: int) -> None:
        self._segments[segment] = self._turning[segment].empty
        self._here.pop(segment).drop()

    def _read(self, segment: int) -> None:
        host = self._hosts.get(segment)
        store = self._store.beside(None if host is None else host.read)
        try:
            loaded = self._stream.run(lambda: self._fill(segment, store), behind_steps=True)
        except Exception as error:
            self._news.append((segment, problem_of(error)))
        else:
            self._news.append((segment, loaded, store))
            return
        store.drop()


class HostCopies:
    """Tensors of one segment in the host's memory, once they have been read; pinned where copies to a device are."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._kept: dict[str, Tensor] = {}

    def read(self, ref: TensorRef) -> Tensor:
        """The tensor on the device. Raises as `WeightStore.read`."""
        if ref.digest not in self._kept:
            stored = self._store.read_host(ref)
            self._kept[ref.digest] = stored.pin_memory() if self._store.device.type == "cuda" else stored.clone()
            del stored
            self._store.release(ref)
        return self._kept[ref.digest].to(self._store.device, non_blocking=True)
