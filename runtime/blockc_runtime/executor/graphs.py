"""Rows of a segment, or of a part of it, as a recorded graph: a step's work on the device is one launch each.

In: the rows of a launch: of one token each, or up to so many tokens of prompts beside them. Out: what the segment
yields for them, or why it has to be run op by op. Rows are filled up to a bucket (`buckets.py`); everything a step
reads from the host goes through one pinned buffer and one copy, whatever segments the rows pass. Invariant: a replay
equals the same rows run op by op.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc.ir.recorded import MOST_ROWS, Bucket, bucket_beside, bucket_of, buckets_of, most_tiles, row_buffers
from blockc_runtime.executor.batch import TokenBatch
from blockc_runtime.executor.buckets import GroupForm, StepLayout, TableRow, table_of
from blockc_runtime.executor.graph_store import Graph, GraphKey, GraphStore
from blockc_runtime.executor.model import LoadedModel
from blockc_runtime.executor.program import LogitRows
from blockc_runtime.executor.recorder import Outputs, Recorder
from blockc_runtime.executor.segment import LoadedSegment, PassInputs, reads_states, run_blocks
from blockc_runtime.executor.sides import Bank
from blockc_runtime.kv.pool import KvPool
from blockc_runtime.ops.attention.batch import PagedChunks, PagedRows, StaticBatch
from blockc_runtime.ops.attention.narrow import kernel_problem
from blockc_runtime.ops.dtypes import torch_dtype
from blockc_runtime.ops.linear.integers import IntegerWeights
from blockc_runtime.ops.linear.side_tiles import SideTiles, StaticSides
from blockc_runtime.ops.linear.sides import SideWeights
from blockc_runtime.step import Row

# Page tables that are kept as whole numbers, for each row and KV group.
_TABLES_EACH = 2
# Graphs that are recorded before requests come: a tenth of a second each.
_MOST_WARM = 96
# Tiles of fine-tunes that graphs have room for, where rows do not bound them.
_TILES = (0, 8, 32, 128)
# Ops whose work depends on what the host must know of the rows.
_HOST_OPS = {
    "blockc.expert_linear": "experts are called as often as tokens chose them",
    "blockc.encode": "texts are read as a whole",
    "blockc.pool": "texts are read as a whole",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Hidden states ``[1, T, F]``, or logits of tokens that want some, and which of all T are finite.

    Logits lie where the next replay puts its own. ``recording_s``: what recording took, if it was the first time.
    """

    states: Tensor
    finite: Tensor | None
    recording_s: float = 0.0


class SegmentGraphs:
    """The graphs of a model, recorded when they are first needed. ``most_rows`` and ``most_tokens``: of a step.

    They share what they read and what they yield, one memory for each width: no two run at once, and what is to last is
    copied from there. Its size is part of a plan (`blockc.ir.recorded`).
    """

    def __init__(
        self, model: LoadedModel, *, device: torch.device, recorder: Recorder, most_rows: int, most_tokens: int
    ) -> None:
        self._model, self._device, self._recorder = model, device, recorder
        self._most_rows = min(most_rows, MOST_ROWS)
        self._largest = buckets_of(max_rows=most_rows, max_tokens=most_tokens)
        positions = max((limits.positions for limits in model.limits), default=1)
        self._groups = tuple(
            _form(pool, window, positions) for pool, window in zip(model.pools, model.windows, strict=True)
        )
        self._banks = tuple(tuple(bank for bank in own.banks if _is_tabled(bank, own)) for own in model.segments)
        self._others = tuple(tuple(bank for bank in own.banks if not _is_tabled(bank, own)) for own in model.segments)
        # By segment, and whether there are prompts: what cannot be recorded of the one may be of the other.
        self._refused = {
            (number, has_prompts): why
            for number, own in enumerate(model.segments)
            for has_prompts in (False, True)
            if (why := _refusal(number, own, model, has_prompts=has_prompts)) is not None
        }
        size = max(self._layout(bucket).size for bucket in self._largest)
        self._numbers = torch.zeros(size, dtype=torch.int64, device=device)
        self._staged = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._copied: torch.cuda.Event | None = None
        self._filled: tuple[TokenBatch, Bucket, Sequence[int]] | None = None
        self._graphs = GraphStore(len(model.segments))
        self._tables: dict[int, tuple[tuple[int | None, ...], array[int]]] = {}
        self._shared: dict[tuple[bool, bool, int, torch.dtype], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the tables and of what graphs share, without those that they compute in."""
        return self._numbers.nbytes + sum(own.nbytes for own in self._shared.values())

    def run(
        self, number: int, blocks: slice, batch: TokenBatch, rows: Sequence[Row], states: Callable[[], Tensor]
    ) -> Replayed | str:
        """A run of segment ``number``'s blocks on ``batch``, or why not.

        ``states``: gives the hidden states before them.
        """
        segment = self._model.segments[number]
        is_whole = blocks.stop - blocks.start == len(segment.occurrences)
        bucket = self._bucket(number, batch, rows, is_whole=is_whole)
        if isinstance(bucket, str):
            return bucket
        tiles = _room(self._fill(batch, rows, bucket)[number], bucket)
        key = GraphKey(
            segment=number, first=blocks.start, stop=blocks.stop, is_whole=is_whole, bucket=bucket, tiles=tiles
        )
        spans = _spans(batch, bucket)
        given = None
        if reads_states(segment.occurrences[blocks]):
            before = states()
            given = self._share(before, goes_in=True)[:, : bucket.tokens]
            for to, place, count in spans:
                given[:, to : to + count].copy_(before[:, place : place + count])
        graph, recording_s = self._graphs.find(key), 0.0
        if graph is None:
            if not self._graphs.pays(key):
                return "a size of steps with prompts that is rare"
            began_s = time.perf_counter()
            graph = self._try(key, given)
            if graph is None:
                return self._refused[key.kind]
            recording_s = time.perf_counter() - began_s
        graph.replay()
        out, finite = graph.outputs
        if finite is None:
            # Hidden states are read by later launches, which may replay this very graph first.
            own = torch.cat([out[:, to : to + count] for to, _, count in spans], 1)
            return Replayed(states=own, finite=None, recording_s=recording_s)
        flags = [finite[to : to + count] for to, _, count in spans]
        return Replayed(
            states=_wanted(out, batch, bucket),
            finite=flags[0] if len(flags) == 1 else torch.cat(flags),  # rows of one token alone need no launch more
            recording_s=recording_s,
        )

    def warm(self) -> int:
        """Record graphs before there are requests; how many there are.

        Those of rows of one token, and of each segment the largest with prompts. Large ones first: graphs compute in
        one memory, of which the next takes what the one before has left.
        """
        sizes = dict.fromkeys(Bucket(singles=bucket_of(rows)) for rows in range(1, self._most_rows + 1))
        segments = range(len(self._model.segments))
        alone = [
            self._whole(number, bucket, tiles)
            for bucket in sizes
            for number in segments
            for tiles in self._rooms(number, bucket)
        ]
        # Of each room the smallest: its kernels are compiled.
        least = bucket_beside(0, (2,))
        chunked = [self._whole(number, self._largest[-1], 0) for number in segments]
        chunked += [
            self._whole(number, least, tiles)
            for number in segments
            if least is not None
            for tiles in self._rooms(number, least)
        ]
        for key in (*chunked[: _MOST_WARM // 4], *reversed(alone[:_MOST_WARM])):
            if key.kind not in self._refused and key not in self._graphs:
                numbers = self._layout(key.bucket).numbers(())
                self._numbers[: len(numbers)].copy_(torch.frombuffer(numbers, dtype=torch.int64))
                self._filled = None
                self._try(key, self._no_states(key))
        return len(self._graphs)

    def _whole(self, number: int, bucket: Bucket, tiles: int) -> GraphKey:
        stop = len(self._model.segments[number].occurrences)
        return GraphKey(segment=number, first=0, stop=stop, is_whole=True, bucket=bucket, tiles=tiles)

    def _rooms(self, number: int, bucket: Bucket) -> tuple[int, ...]:
        """Those that graphs of a segment are recorded with."""
        rooms = _TILES if self._banks[number] else _TILES[:1]
        return tuple(dict.fromkeys(min(room, most_tiles(bucket)) for room in rooms))

    def _no_states(self, key: GraphKey) -> Tensor | None:
        """Hidden states as a segment reads them, of nobody."""
        block = self._model.segments[key.segment].occurrences[0]
        for buffer in row_buffers([block.program.structure]):
            if buffer.goes_in:
                like = torch.zeros((1, 1, buffer.width), dtype=torch_dtype(buffer.dtype), device=self._device)
                return self._share(like, goes_in=True)[:, : key.bucket.tokens]
        return None

    def _try(self, key: GraphKey, states: Tensor | None) -> Graph | None:
        """Record a graph, or take note why those of its kind cannot be."""
        try:
            graph = self._record(key, states)
        except Exception as error:  # whatever forbids recording does not forbid running
            self._refused[key.kind] = f"it cannot be recorded: {type(error).__name__}: {error}"[:300]
            return None
        self._graphs.keep(key, graph)
        return graph

    def _bucket(self, number: int, batch: TokenBatch, rows: Sequence[Row], *, is_whole: bool) -> Bucket | str:
        """What a launch is filled up to, or why it is none of those that are recorded."""
        chunks = [count for count in batch.counts if count > 1]
        if (number, bool(chunks)) in self._refused:
            return self._refused[number, bool(chunks)]
        if any(rows[i].chain in bank.slots for bank in self._others[number] for i in batch.rows):
            return "fine-tunes of kinds that the host has to sort"
        singles = len(batch.rows) - len(chunks)
        if singles > self._most_rows:
            return "more rows than are recorded"
        if not chunks:
            return Bucket(singles=bucket_of(singles))
        if not is_whole:
            return "prompts that stop between blocks"
        bucket = bucket_beside(singles, chunks)
        if bucket is None:
            return "more tokens of prompts than are recorded"
        return bucket if sum(batch.samples) <= bucket.logits else "more logits than are recorded"

    def _layout(self, bucket: Bucket) -> StepLayout:
        return StepLayout(bucket=bucket, groups=self._groups, segments=len(self._model.segments))

    def _fill(self, batch: TokenBatch, rows: Sequence[Row], bucket: Bucket) -> Sequence[int]:
        """Bring the step's numbers to the device, once for all launches in a row that have the same rows.

        Returns the tiles in use, of each segment.
        """
        if self._filled is not None and self._filled[0] is batch and self._filled[1] == bucket:
            return self._filled[2]
        layout = self._layout(bucket)
        numbers = layout.numbers([self._row(rows[i]) for i in batch.rows])
        if self._copied is not None:
            self._copied.synchronize()  # the buffer may still be read by the copy before
        self._staged[: len(numbers)].copy_(torch.frombuffer(numbers, dtype=torch.int64))
        self._numbers[: len(numbers)].copy_(self._staged[: len(numbers)], non_blocking=True)
        if self._device.type == "cuda":
            self._copied = self._copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(self._device))
        batch.feed(self._numbers)  # tokens lie first, those that are fed before all others
        used = [numbers[layout.used_at(segment)] for segment in range(layout.segments)]
        self._filled = batch, bucket, used
        return used

    def _row(self, row: Row) -> TableRow:
        places, chain = self._model.group_place[row.chain], row.chain
        held = [None if (at := places.get(group)) is None else row.pages[at] for group in range(len(self._groups))]
        return TableRow(
            tokens=row.tokens,
            start=row.start,
            samples=row.logits,
            pages=tuple([None if pages is None else self._table(pages) for pages in held]),
            uses=tuple([_use(banks, chain) for banks in self._banks]),
        )

    def _table(self, pages: tuple[int | None, ...]) -> array[int]:
        """A page table is the same object as long as it has no page more."""
        known = self._tables.get(id(pages))
        if known is None:
            if len(self._tables) >= _TABLES_EACH * self._most_rows * len(self._groups):
                self._tables.clear()
            known = self._tables[id(pages)] = pages, table_of(pages)  # kept, so that the number is nobody else's
        return known[1]

    def _share(self, like: Tensor, *, goes_in: bool, selects: bool = False) -> Tensor:
        """``[1, most, F]``, which all graphs have that read, or yield, as many values.

        ``selects``: for rows that want logits, and else for tokens.
        """
        key = goes_in, selects, like.shape[2], like.dtype
        if key not in self._shared:
            most = max(bucket.logits if selects else bucket.tokens for bucket in self._largest)
            self._shared[key] = like.new_zeros((1, most, like.shape[2]))
        return self._shared[key]

    def _record(self, key: GraphKey, states: Tensor | None) -> Graph:
        """Static operands are views of the one buffer of tables, and of what graphs share, as ``states`` are."""
        segment, layout, bucket = self._model.segments[key.segment], self._layout(key.bucket), key.bucket
        batches = {group: self._kv_batch(layout, group) for own in segment.occurrences for group in own.kv_groups}
        sides = self._sides(key, layout) if key.tiles else [[()] * len(groups) for groups in segment.groups]
        blocks = slice(key.first, key.stop)
        index = self._numbers[layout.logits_at : layout.pages_at] if bucket.chunked else None

        def given_states() -> Tensor:
            assert states is not None
            return states

        def run() -> Outputs:
            rows = LogitRows(spans=(), index=index)
            given = PassInputs(
                token_count=bucket.tokens,
                rows=rows,
                tokens=self._numbers[None, : bucket.tokens],
                positions=self._numbers[None, bucket.tokens : 2 * bucket.tokens],
                states=given_states,
            )
            out = run_blocks(
                segment.occurrences[blocks], self._model.preludes, given, sides=sides[blocks],
                kv_batch=batches.__getitem__,
            )  # fmt: skip
            selects = rows.finite is not None
            yielded = self._share(out, goes_in=False, selects=selects)[:, : out.shape[1]]
            yielded.copy_(out)
            return yielded, rows.finite

        replay, outputs = self._recorder.record(run)
        return Graph(replay=replay, outputs=outputs)

    def _kv_batch(self, layout: StepLayout, group: int) -> StaticBatch:
        bucket, form, pages = layout.bucket, self._groups[group], self._numbers[layout.pages_at :]
        slots, rows, chunks = layout.slots_at(group), layout.rows_at(group), layout.chunks_at(group)
        return StaticBatch(
            slots=self._numbers[slots : slots + bucket.tokens],
            window=form.window,
            on_device=PagedRows(
                rows=self._numbers[rows:chunks].view(bucket.singles, 4),
                pages=pages,
                longest=form.positions if form.window is None else min(form.positions, form.window),
            ),
            chunks_on_device=PagedChunks(
                rows=self._numbers[chunks : chunks + 4 * bucket.chunks].view(bucket.chunks, 4), pages=pages
            ),
            chunked=bucket.chunked,
        )

    def _sides(self, key: GraphKey, layout: StepLayout) -> list[list[tuple[tuple[SideWeights, StaticSides], ...]]]:
        """All fine-tunes that are tabled, whoever uses them: which do is read on the device."""
        number = key.segment
        users = {}
        for selects in (False, True):
            first, used = (at(number, selects=selects) for at in (layout.tiles_at, layout.used_at))
            tiles = SideTiles(
                values=self._numbers[first : first + 4 * key.tiles].view(key.tiles, 4),
                used=self._numbers[used : used + 1],
                count=key.tiles,
                places=layout.tile_places,
            )
            users[selects] = [StaticSides(number=bank, tiles=tiles) for bank in range(len(self._banks[number]))]
        return [
            [
                tuple(
                    (bank.weights[occurrence, place], users[group.after_selection][i])
                    for i, bank in enumerate(self._banks[number])
                    if (occurrence, place) in bank.weights
                )
                for place, group in enumerate(groups)
            ]
            for occurrence, groups in enumerate(self._model.segments[number].groups)
        ]


def _room(tiles: int, bucket: Bucket) -> int:
    """For how many tiles a graph is recorded: programs of tiles that nobody uses cost a third of those of others."""
    room = next((most for most in _TILES if tiles <= most), most_tiles(bucket))
    return min(room, most_tiles(bucket))


def _spans(batch: TokenBatch, bucket: Bucket) -> list[tuple[int, int, int]]:
    """Tokens that lie together: the first place in the bucket, in the batch, and how many."""
    singles = sum(count == 1 for count in batch.counts)
    spans = [(0, 0, singles), (bucket.singles, singles, batch.token_count - singles)]
    return [span for span in spans if span[2]]


def _wanted(logits: Tensor, batch: TokenBatch, bucket: Bucket) -> Tensor:
    """Those that a batch wants: a step with prompts yields them one after the other, and others for every row."""
    if bucket.chunked:
        return logits[:, : sum(batch.samples)]
    index, logits = batch.logit_index, logits[:, : batch.token_count]
    return logits if index is None else logits.index_select(1, index)


def _form(pool: KvPool, window: int | None, positions: int) -> GroupForm:
    if pool.scratch is None:
        raise ValueError("a pool has no page for rows that fill up buckets")
    return GroupForm(page_tokens=pool.page_tokens, window=window, scratch=pool.scratch, positions=positions)


def _is_tabled(bank: Bank, segment: LoadedSegment) -> bool:
    """Whether its fine-tunes are stacks at linears alone, whose users kernels find in the table of tiles."""
    return all(
        isinstance(own, SideWeights)
        and own.is_stacked
        and (not own.in_scales or own.in_scale(len(segment.groups[occurrence][group].sites)) is not None)
        for (occurrence, group), own in bank.weights.items()
    )


def _use(banks: Sequence[Bank], chain: int) -> tuple[int, int] | None:
    """Bank and slot of a chain, as they are now: fine-tunes may take turns in slots."""
    for number, bank in enumerate(banks):
        if (slot := bank.slots.get(chain)) is not None:
            return number, slot
    return None


def _refusal(number: int, segment: LoadedSegment, model: LoadedModel, *, has_prompts: bool) -> str | None:
    """Why a segment is never recorded, or None."""
    if number in model.turning:
        return "its weights are in memory by turns, and not always in one place"
    for occurrence in segment.occurrences:
        if has_prompts and any(isinstance(own, IntegerWeights) for own in occurrence.bound):
            return "matrices of whole numbers are widened for prompts, in memory that graphs have not"
        for op in occurrence.program.structure.ops:
            if op.target in _HOST_OPS:
                return _HOST_OPS[op.target]
        for group in occurrence.kv_groups:
            if any(kernel_problem(layer.keys) is not None for layer in model.pools[group].layers):
                return "a cache that the kernels of attention do not take"
    return None
