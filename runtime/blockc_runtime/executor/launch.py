"""One step: its launches in order, then tokens.

In: a loaded model and a step. Out: a result per row. Where the host runs ahead of the device, what is known of a row
only when the device is done (its token, whether its values are finite) is taken in by `settle`, and not waited for
before; tokens that can be drawn without the host (`device_draw.py`) are there for the next step meanwhile. Invariant:
each launch runs once on the union of its rows; a row that faults is left out of all later launches and takes no other
row with it: a launch that fails as a whole is tried again row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blockc_runtime.executor.batch import DeviceFeed, TokenBatch, kv_rows, row_problem, token_batch
from blockc_runtime.executor.device_draw import Drawn, draw_on_device, draws_alone
from blockc_runtime.executor.draw import Masks, draw, vectors
from blockc_runtime.executor.graphs import Replayed, SegmentGraphs
from blockc_runtime.executor.model import LoadedModel
from blockc_runtime.executor.program import LogitRows
from blockc_runtime.executor.repeats import Repeats
from blockc_runtime.executor.segment import Again, PassInputs, run_blocks
from blockc_runtime.executor.sides import BankUse, side_sets
from blockc_runtime.native.queue import together
from blockc_runtime.native.template import Operand
from blockc_runtime.ops.attention.batch import KvBatch, kv_batch
from blockc_runtime.ops.attention.native import operands
from blockc_runtime.ops.linear.sides import SideWeights
from blockc_runtime.sampling import UNSOUND
from blockc_runtime.step import Fault, Launch, Launched, Row, RowResult, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hidden:
    """Hidden states ``[1, T, F]`` of the rows of ``batch``, between two launches."""

    batch: TokenBatch
    states: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsettled:
    """What was ``drawn`` of a batch, and the place of each row in it; or ``kept``: logits and flags to draw from.

    Logits ``[R, V]``, float32; flags ``[T]``: which tokens are finite.
    """

    batch: TokenBatch
    drawn: Drawn | None = None
    places: Mapping[int, int] = field(default_factory=dict)
    kept: tuple[Tensor, Tensor] | None = None


class StepRun:
    """A step in progress: ``launch``, then ``settle``. Errors of rows and launches are faults in the results.

    ``repeats``: of the model's blocks.
    ``defers``: the host runs ahead. ``feeds``: by row, where its token lies if only the device knows it.
    ``parked``: hidden states ``[1, T, F]`` of requests whose last row stopped between two blocks; afterwards those of
    requests that wait so for their next one.
    """

    def __init__(
        self,
        model: LoadedModel,
        step: Step,
        *,
        device: torch.device,
        masks: Masks,
        graphs: SegmentGraphs | None,
        logits_tap: Callable[[int, Tensor], None] | None,
        parked: Mapping[str, Tensor],
        defers: bool,
        feeds: Mapping[int, DeviceFeed],
        repeats: Repeats,
    ) -> None:
        self.repeats = repeats
        self.model, self.step, self.device, self.masks, self.graphs = model, step, device, masks, graphs
        self.logits_tap = logits_tap
        self._defers, self._feeds = defers, feeds
        self._unsettled: list[_Unsettled] = []
        self._parked = parked
        self.parked: dict[str, Tensor] = {}
        self._replayed: list[Replayed] = []
        self._op_by_op: list[str] = []
        self.launches = 0
        self.base_reads = 0
        self.tokens = sum(len(row.tokens) for row in step.rows)
        self._faults: dict[int, Fault] = {}
        self._results: dict[int, RowResult] = {}
        self._hidden: dict[int, _Hidden] = {}
        self._batches: dict[tuple[int, ...], TokenBatch] = {}
        self._contexts: dict[tuple[int, ...], dict[str, tuple[Tensor, ...]]] = {}
        self._kv: dict[tuple[int, tuple[int, ...]], KvBatch] = {}

    def settle(self) -> tuple[RowResult, ...]:
        """What came of the rows, once the device is done. Idempotent."""
        unsettled, self._unsettled = self._unsettled, []
        for own in unsettled:
            if own.drawn is not None:
                self._take_drawn(own.batch, own.drawn, own.places)
            elif own.kept is not None:
                self._draw_sound(own.batch, own.kept[0], own.kept[1].tolist())
        return tuple(self._result(index) for index in range(len(self.step.rows)))

    @property
    def launched(self) -> Launched:
        """How its launches were made."""
        return Launched(
            replays=len(self._replayed),
            op_by_op=tuple(self._op_by_op),
            recorded=sum(own.recording_s > 0 for own in self._replayed),
            recording_s=sum(own.recording_s for own in self._replayed),
        )

    @property
    def needs_host(self) -> bool:
        """Whether tokens wait for the host to draw them."""
        return any(own.drawn is None for own in self._unsettled)

    def feed_of(self, index: int) -> DeviceFeed | None:
        """Where the token of a row lies that the device has drawn and the host does not know yet."""
        for own in self._unsettled:
            if own.drawn is not None and index in own.places:
                return DeviceFeed(tokens=own.drawn.tokens, place=own.places[index])
        return None

    def launch(self) -> None:
        """Everything that does not need to wait for the device."""
        for index, row in enumerate(self.step.rows):
            problem = self._problem(index, row)
            if problem is not None:
                self._faults[index] = Fault(scope="row", message=problem)
            elif row.blocks is not None and row.blocks[0] > 0:
                self._hidden[index] = _Hidden(batch=self._batch((index,)), states=self._parked[row.request])
        for launch in self.step.launches:
            rows = [row for row in launch.rows if row not in self._faults]
            if not rows:
                continue
            if self._try(launch, rows) is not None:
                # Memory that was short for all may do for each: whoever fails by itself is who fails.
                for index in rows:
                    if (error := self._try(launch, [index])) is not None:
                        message = f"{type(error).__name__}: {error}"[:500]
                        self._faults[index] = Fault(scope="launch", message=message)
        self._park()

    def _try(self, launch: Launch, rows: Sequence[int]) -> Exception | None:
        """Launch; what went wrong. Pages that a failed launch wrote to are written anew by whoever is tried again."""
        try:
            self._launch(launch, rows)
        except Exception as error:
            return error
        return None

    def _park(self) -> None:
        """Keep hidden states behind the step: of rows that stopped in it, and of those that had none in it."""
        index_of = {row.request: index for index, row in enumerate(self.step.rows)}
        for name in self.step.parked:
            index = index_of.get(name)
            if index is None and name in self._parked:
                self.parked[name] = self._parked[name]
            elif index is not None and index not in self._faults:
                try:
                    self.parked[name] = self._states(self._batch((index,))).clone()
                except Exception as error:
                    message = f"{type(error).__name__}: {error}"[:500]
                    self._faults[index] = Fault(scope="row", message=message)

    def _problem(self, index: int, row: Row) -> str | None:
        if row.fed is not None and index not in self._feeds:
            return "the token that it goes on from was not drawn"
        if not 0 <= row.chain < len(self.model.limits):
            return f"the plan has no chain {row.chain}"
        if row.chain in self.model.disabled:
            return f"its fine-tune could not be loaded: {self.model.disabled[row.chain]}"
        if self.model.residence.is_missing(row.chain):
            return "its fine-tune is in no slot"
        if self.model.turning.is_missing(row.chain):
            return "its blocks are not in memory"
        if row.blocks is not None and row.blocks[0] > 0:
            states = self._parked.get(row.request)
            if states is None or states.shape[1] != len(row.tokens):
                return "its hidden states were not kept"
        return row_problem(row, self.model.limits[row.chain])

    def _result(self, index: int) -> RowResult:
        fault = self._faults.get(index)
        if fault is None:
            return self._results.get(index, RowResult(tokens=(), logprobs=()))
        return RowResult(tokens=(), logprobs=(), fault=fault)

    def _launch(self, launch: Launch, rows: Sequence[int]) -> None:
        """Run one segment on ``rows`` and keep what comes out of it."""
        segment = self.model.segments[launch.segment]
        blocks = slice(*(launch.blocks or (0, len(segment.occurrences))))
        yields_logits = segment.yields_logits and blocks.stop == len(segment.occurrences)
        batch = self._batch(tuple(rows))
        spans = tuple(zip(batch.firsts, batch.counts, strict=True))
        logit_rows = LogitRows(spans=spans, index=batch.logit_index if yields_logits else None)
        states = self._pass(launch, blocks, batch, logit_rows)
        self.launches += 1
        self.base_reads += sum(segment.base_reads[blocks])
        if yields_logits:
            self._finish(batch, states, logit_rows)
        else:
            kept = _Hidden(batch=batch, states=states)
            self._hidden.update(dict.fromkeys(batch.rows, kept))

    def _pass(self, launch: Launch, blocks: slice, batch: TokenBatch, rows: LogitRows) -> Tensor:
        """Hidden states ``[1, T, F]``, or logits ``[1, R, V]`` after the last segment."""
        if self.graphs is not None:
            done = self.graphs.run(launch.segment, blocks, batch, self.step.rows, lambda: self._states(batch))
            if isinstance(done, Replayed):
                self._replayed.append(done)
                rows.finite = done.finite
                return done.states
            self._op_by_op.append(done)
        segment = self.model.segments[launch.segment]
        uses = [use for bank in segment.banks if (use := bank.select(batch, self.step.rows, self.device)) is not None]
        given = PassInputs(
            token_count=batch.token_count,
            rows=rows,
            tokens=batch.tokens,
            positions=batch.positions,
            states=lambda: self._states(batch),
            contexts=self._contexts.setdefault(batch.rows, {}),
        )
        waits = segment.occurrences[0].program.waits
        again = self._again(launch.segment, blocks, batch, uses) if waits else None
        with together() if waits else nullcontext():
            return run_blocks(
                segment.occurrences[blocks],
                self.model.preludes,
                given,
                sides=side_sets(uses, segment.groups)[blocks],
                kv_batch=lambda group: self._kv_batch(group, batch, segment.dtype),
                again=again,
            )

    def _again(self, segment: int, blocks: slice, batch: TokenBatch, uses: Sequence[BankUse]) -> Again | None:
        """Blocks as they were called for other rows, if only linears have terms."""
        weights = (own for use in uses for own in use.bank.weights.values())
        if segment in self.model.turning or not all(isinstance(own, SideWeights) for own in weights):
            return None  # weights that are not always in one place, or ops that are no kernels
        tokens = batch.token_count
        tables = [use.tokens.table for use in uses]
        users = tuple(id(use.bank) for use in uses)
        # Strides of one token say nothing, and rows of one token and of several have calls of their own.
        alike = tokens == 1, 1 in batch.counts, max(batch.counts) > 1

        def again(
            part: tuple[int, int], read: tuple[Tensor, ...], kv: Sequence[KvBatch], run: Callable[[], Tensor]
        ) -> Tensor:
            if any(own.shape[:-1].numel() != tokens or own.shape[-2] != tokens for own in read):
                return run()
            forms = tuple((own.ndim, own.shape[-1], own.stride()[-2:]) for own in read)
            given = [Operand(tensor=own) for own in read]
            given += [Operand(tensor=table.values, numbers=(table.count,)) for table in tables]
            given += [own for batch in kv for own in operands(batch)]
            return self.repeats.run((segment, blocks.start, part, users, alike, forms), tokens, given, run)

        return again

    def _batch(self, rows: tuple[int, ...]) -> TokenBatch:
        if rows not in self._batches:
            self._batches[rows] = token_batch(
                self.step.rows, rows, self.model.order, device=self.device, feeds=self._feeds
            )
        return self._batches[rows]

    def _kv_batch(self, group: int, batch: TokenBatch, dtype: torch.dtype) -> KvBatch:
        key = group, batch.rows
        if key not in self._kv:
            places = [self.model.group_place[self.step.rows[i].chain][group] for i in batch.rows]
            self._kv[key] = kv_batch(
                kv_rows(batch, self.step.rows, places),
                page_tokens=self.model.pools[group].page_tokens,
                window=self.model.windows[group],
                dtype=dtype,
                device=self.device,
            )
        return self._kv[key]

    def _states(self, batch: TokenBatch) -> Tensor:
        """Hidden states of the rows of ``batch``, wherever earlier launches left them."""
        if not self._hidden.keys() >= set(batch.rows):
            raise ValueError("a segment is launched before the one that leads to it")
        sources = [self._hidden[row] for row in batch.rows]
        if all(source.batch.rows == batch.rows for source in sources):
            return sources[0].states
        parts = []
        for row, source in zip(batch.rows, sources, strict=True):
            place = source.batch.rows.index(row)
            first = source.batch.firsts[place]
            parts.append(source.states[:, first : first + source.batch.counts[place]])
        return torch.cat(parts, 1)

    def _finish(self, batch: TokenBatch, logits: Tensor, rows: LogitRows) -> None:
        """Find the rows that went wrong; draw tokens for the others. Both later, if the host runs ahead."""
        assert rows.finite is not None
        if not self._defers:
            self._draw_sound(batch, logits[0].float(), rows.finite.tolist())
            return
        sampled = [row for row, samples in zip(batch.rows, batch.samples, strict=True) if samples]
        entries = [self.step.rows[row] for row in sampled]
        if self.logits_tap is None and all(self._draws_alone(entry, logits.shape[2]) for entry in entries):
            drawn = draw_on_device(logits[0].float(), entries, rows.finite)
            places = {row: place for place, row in enumerate(sampled)}
            self._unsettled.append(_Unsettled(batch=batch, drawn=drawn, places=places))
        else:  # a graph's own logits and flags last until it is replayed
            kept = logits[0].to(torch.float32, copy=True), rows.finite.clone()
            self._unsettled.append(_Unsettled(batch=batch, kept=kept))

    def _draws_alone(self, row: Row, vocab: int) -> bool:
        """Whether the device draws for a row: whatever that is, the next step has to be able to read it."""
        is_vector = row.chain in self.model.vectors
        return not is_vector and vocab <= self.model.limits[row.chain].token_ids and draws_alone(row)

    def _take_drawn(self, batch: TokenBatch, drawn: Drawn, places: Mapping[int, int]) -> None:
        """What the device has drawn."""
        tokens, sound, finite = drawn.found()
        for row, first, count in zip(batch.rows, batch.firsts, batch.counts, strict=True):
            place = places.get(row)
            if not all(finite[first : first + count]):
                self._spoil(row)
            elif place is not None and not sound[place]:
                self._faults[row] = Fault(scope="row", message=UNSOUND)
            elif place is not None:
                self._results[row] = RowResult(tokens=(tokens[place],), logprobs=())

    def _draw_sound(self, batch: TokenBatch, logits: Tensor, finite: Sequence[bool]) -> None:
        """Draw tokens for the rows whose values are ``finite [T]``, from ``logits [R, V]``."""
        wanted: list[int] = []
        places: list[int] = []
        taken = 0
        for row, first, count, samples in zip(batch.rows, batch.firsts, batch.counts, batch.samples, strict=True):
            own = range(taken, taken + samples)
            taken += samples
            if not all(finite[first : first + count]):
                self._spoil(row)
            elif samples:
                wanted.append(row)
                places += own
        if len(places) < len(logits):
            logits = logits[places]
        self._draw(wanted, logits)

    def _draw(self, rows: Sequence[int], logits: Tensor) -> None:
        """``logits [R, V]``: the samples of ``rows``, one row after the other."""
        if not rows:
            return
        entries = [self.step.rows[row] for row in rows]
        if self.logits_tap is not None:
            for row, own in zip(rows, logits.split_with_sizes([entry.logits for entry in entries]), strict=True):
                self.logits_tap(row, own)
        if entries[0].chain in self.model.vectors:  # and so are all others that pass this head
            self._results.update(zip(rows, vectors(logits, entries), strict=True))
            return
        self._results.update(zip(rows, draw(logits, entries, self.masks), strict=True))

    def _spoil(self, row: int) -> None:
        """A row fault; what it wrote to its pages is erased before they pass to another request."""
        self._faults[row] = Fault(scope="row", message="the model computed values that are not finite")
        entry = self.step.rows[row]
        for group, place in self.model.group_place[entry.chain].items():
            pool = self.model.pools[group]
            slots = [
                page * pool.page_tokens + position % pool.page_tokens
                for position in range(entry.start, entry.start + len(entry.tokens))
                if (page := entry.pages[place][position // pool.page_tokens]) is not None
            ]
            pool.erase(torch.tensor(slots).to(self.device))
