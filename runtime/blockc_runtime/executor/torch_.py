"""``TorchExecutor``: runs the steps of a plan with torch, on CPU or CUDA.

In: steps as plain data. Out: results in the order of their rows. Invariant: nothing raises out of ``collect``; a row's
result depends on its own tokens, pages and chain only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc.plan import ExecutionPlan
from blockc.zoo import Zoo
from blockc_runtime.executor.flight import Flight
from blockc_runtime.executor.grammars import Grammars
from blockc_runtime.executor.graphs import SegmentGraphs
from blockc_runtime.executor.launch import StepRun
from blockc_runtime.executor.model import Kept, LoadedModel, kept_of, load_model
from blockc_runtime.executor.recorder import Recorder, recorder_for
from blockc_runtime.executor.repeats import Repeats
from blockc_runtime.executor.warm import warm_up
from blockc_runtime.memory import MemoryUse, Resident, machine_bytes, resident
from blockc_runtime.ops.attention.narrow import kernel_problem
from blockc_runtime.step import Fault, RowResult, SegmentTurn, Step, StepResult

# Called with a row's index in its step and its logits, float32 ``[samples, vocab]``.
LogitsTap = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """What the last step took. ``base_reads``: multiplications by base weights, whoever the rows belong to.

    ``replays``: launches that were recorded graphs; ``op_by_op``: of each other launch why it was not, where graphs are
    used at all. ``fed_on_device``: rows whose token was not known to the host when the step was launched.
    """

    launches: int = 0
    base_reads: int = 0
    tokens: int = 0
    replays: int = 0
    op_by_op: tuple[str, ...] = ()
    fed_on_device: int = 0


class TorchExecutor:
    """Implements :class:`~blockc_runtime.step.Executor`.

    ``logits_tap`` sees the logits of every sampled row before tokens are drawn. Construction raises
    :class:`~blockc.diag.DiagnosticError`; a fine-tune that fails to load only disables its own chain (``disabled``).
    ``recorder``: what records graphs of decode steps on a device, if anything does.

    ``before``: of another plan on the same device. What both plans have in memory is kept, and the KV groups of this
    one that are ``carried`` go on in those of that. ``alone``: close it first, and free what this plan does not have;
    else both may run steps, never two at once.

    ``runs_ahead``: where the plan overlaps, whether the host queues a step on the device behind the one that runs, or
    leaves steps to a thread; by default what suits the device.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        zoo: Zoo,
        *,
        device: str | torch.device = "cpu",
        logits_tap: LogitsTap | None = None,
        recorder: Callable[[torch.device], Recorder | None] = recorder_for,
        before: TorchExecutor | None = None,
        carried: Mapping[int, int] | None = None,
        alone: bool = False,
        runs_ahead: bool | None = None,
    ) -> None:
        self.plan, self.device = plan, torch.device(device)
        self.logits_tap = logits_tap
        self.counts = StepCounts()
        # Before the plan before may be closed: a vocabulary takes seconds to index.
        self._grammars: Grammars = Grammars(plan, zoo, before=None if before is None else before._grammars)
        self._before_loading: Resident | None = _resident(self.device) if before is None else before._before_loading
        self._model: LoadedModel | None = None
        self._graphs: SegmentGraphs | None = None
        kept = None
        if before is not None and before._model is not None:
            kept = kept_of(before._model, carried or {})
            if alone:
                before.close()
                kept = kept.only_of(plan)
        try:
            self._load(plan, zoo, kept, recorder)
        except BaseException:
            self._grammars.close()
            raise
        self._after_loading = _resident(self.device)
        self._parked: dict[str, Tensor] = {}
        self._repeats = Repeats()
        self._queue: deque[Flight] = deque()
        # Where steps overlap, a device's queue lets the host run ahead. On a CPU the kernels run in a thread, without
        # the GIL, while the caller goes on.
        self._runs_ahead = plan.batching.overlaps and (self.device.type != "cpu" if runs_ahead is None else runs_ahead)
        is_beside = plan.batching.overlaps and not self._runs_ahead
        self._runner = ThreadPoolExecutor(1, "steps") if is_beside else None

    def _load(
        self,
        plan: ExecutionPlan,
        zoo: Zoo,
        kept: Kept | None,
        recorder: Callable[[torch.device], Recorder | None],
    ) -> None:
        with torch.inference_mode():
            self._model = load_model(plan, zoo, device=self.device, kept=kept)
            records = recorder(self.device)
            if records is not None:
                self._graphs = SegmentGraphs(
                    self._model, device=self.device, recorder=records, most_rows=plan.batching.max_rows,
                    most_tokens=plan.batching.max_batched_tokens,
                )  # fmt: skip

    def warm_up(self) -> int:
        """Compile kernels and record graphs before requests come, where there are any; how many graphs."""
        if self._graphs is None or self._model is None:
            return 0

        def run(step: Step) -> StepResult:
            self.submit(step)
            return self.collect()

        warm_up(self.plan, run)
        with torch.inference_mode():
            return self._graphs.warm()

    @property
    def records(self) -> bool:
        """Whether decode steps are recorded graphs, where they can be."""
        return self._graphs is not None

    @property
    def kernel_problems(self) -> tuple[str, ...]:
        """Why Triton's kernels, where they are used, leave attention over some KV caches to torch's functions."""
        pools = () if self._model is None else self._model.pools
        found = {kernel_problem(layer.keys) for pool in pools for layer in pool.layers}
        return tuple(sorted(why for why in found if why is not None))

    @property
    def disabled(self) -> dict[int, str]:
        """Chains that cannot be served, and why."""
        return {} if self._model is None else dict(self._model.disabled)

    @property
    def kept_bytes(self) -> int:
        """Of the bytes of weights and sides, those that were in memory before."""
        return 0 if self._model is None else self._model.kept_bytes

    @property
    def loaded_bytes(self) -> int:
        """Those that were read."""
        return 0 if self._model is None else self._model.weights_bytes + self._model.sides_bytes - self.kept_bytes

    def device_bytes(self) -> int | None:
        """Memory of the device, whoever uses it; None where the system does not say."""
        return torch.cuda.mem_get_info(self.device)[1] if self.device.type == "cuda" else machine_bytes()

    def memory(self) -> MemoryUse | None:
        """What it holds, measured; None where the system does not say, and once it is closed.

        On CUDA that is what torch's allocator has reserved; the driver's own context is none of it.
        """
        now, before, after, model = _resident(self.device), self._before_loading, self._after_loading, self._model
        if now is None or before is None or after is None or model is None:
            return None
        kv_bytes = sum(pool.resident_bytes() - pool.scratch_bytes for pool in model.pools)

        def most_bytes(seen: Resident) -> int:
            """Of its own and of the zoo's files, at any time until then."""
            return max(seen.own_bytes, seen.peak_bytes - seen.file_bytes) + model.mapped_bytes - before.own_bytes

        return MemoryUse(
            # Libraries are mapped files as the zoo's packs are, and grow while more of them is used.
            runtime_bytes=before.own_bytes + max(0, now.file_bytes - model.mapped_bytes),
            weights_bytes=model.weights_bytes,
            blocks_bytes=model.turning.nbytes,
            sides_bytes=model.sides_bytes,
            kv_bytes=kv_bytes,
            workspace_bytes=most_bytes(now) - model.weights_bytes - model.turning.nbytes - model.sides_bytes - kv_bytes,
            loading_peak_bytes=most_bytes(after),
        )

    def prefetch(self, chain: int) -> None:
        """Begin to read a chain's sides, for a slot that it will be given."""
        if self._model is not None:
            self._model.residence.prefetch(chain)

    def prefetched(self) -> list[tuple[int, str | None]]:
        """Chains that have been read since the last call, with the problem of those that cannot be."""
        return [] if self._model is None else self._model.residence.prefetched()

    def bring(self, turn: SegmentTurn) -> None:
        """Let weights go, and begin to read those of a segment."""
        if self._model is not None:
            self._model.turning.bring(turn)

    def brought(self) -> list[tuple[int, str | None]]:
        """Segments whose weights are there since the last call, with the problem of those that cannot be read."""
        return [] if self._model is None else self._model.turning.brought()

    def index(self, chain: int) -> bool:
        """Have a chain's vocabulary indexed for grammars; whether that is done."""
        return self._grammars.index(chain)

    def submit(self, step: Step) -> None:
        """Queue a step. It runs when it is collected, or, where steps overlap, as soon as it can."""
        flight = Flight.of(step, self._queue)
        if self._runner is not None:
            flight.future = self._runner.submit(self._run, flight)
        elif self._runs_ahead:
            for before in self._queue:
                if before.run is not None and before.run.needs_host:
                    self._settle(before)
            self._launch(flight)
        self._queue.append(flight)

    def collect(self) -> StepResult:
        """Results of the oldest queued step. Raises RuntimeError only if there is none or the executor is closed."""
        if not self._queue:
            raise RuntimeError("no step is queued")
        flight = self._queue.popleft()
        if flight.future is not None:
            flight.future.result()
        elif self._runs_ahead:
            self._settle(flight)
        else:
            self._run(flight)
        return StepResult(step=flight.step.id, rows=flight.results, launched=flight.launched)

    def _run(self, flight: Flight) -> None:
        """Run a step behind those that were submitted before it."""
        self._launch(flight)
        self._settle(flight)

    def _launch(self, flight: Flight) -> None:
        """Run a step, or queue it on the device."""
        if self._model is None:
            raise RuntimeError("the executor is closed")
        feeds = flight.fill()
        step = flight.step
        try:
            with torch.inference_mode():
                for entry in step.fills:
                    self._model.residence.put(entry)
                run = StepRun(
                    self._model, step, device=self.device, masks=self._grammars, graphs=self._graphs,
                    logits_tap=self.logits_tap, parked=self._parked, defers=self._runs_ahead, feeds=feeds,
                    repeats=self._repeats,
                )  # fmt: skip
                run.launch()
                self._parked = run.parked
        except Exception as error:
            self._lose(flight, error)
        else:
            flight.run, flight.launched = run, run.launched
            self.counts = StepCounts(
                launches=run.launches, base_reads=run.base_reads, tokens=run.tokens, replays=run.launched.replays,
                op_by_op=run.launched.op_by_op, fed_on_device=len(feeds),
            )  # fmt: skip

    def _settle(self, flight: Flight) -> None:
        """Take in what came of a step that was launched."""
        run, flight.run = flight.run, None
        if run is None:
            return  # that has been done
        try:
            with torch.inference_mode():
                flight.results = run.settle()
        except Exception as error:
            self._lose(flight, error)

    def _lose(self, flight: Flight, error: Exception) -> None:
        """Not any row's doing: what is known of none of them can be trusted."""
        fault = Fault(scope="worker", message=f"{type(error).__name__}: {error}"[:500])
        flight.results = tuple(RowResult(tokens=(), logprobs=(), fault=fault) for _ in flight.step.rows)

    def close(self) -> None:
        """Free weights and pages, once the steps that run are done. Idempotent."""
        if self._runner is not None:
            self._runner.shutdown(wait=True, cancel_futures=True)
        if self._model is not None:
            self._model.close()
        self._grammars.close()
        self._model = self._graphs = None
        self._repeats = Repeats()
        self._parked.clear()
        self._queue.clear()


def _resident(device: torch.device) -> Resident | None:
    """On CUDA what torch's allocator has reserved. Untested on hardware so far."""
    if device.type != "cuda":
        return resident()
    return Resident(
        own_bytes=torch.cuda.memory_reserved(device),
        file_bytes=0,
        peak_bytes=torch.cuda.max_memory_reserved(device),
    )
