"""``TorchExecutor``: runs the steps of a plan with torch, on CPU or CUDA.

In: steps as plain data. Out: results in the order of their rows. Invariant: nothing raises out of ``collect``; a row's
result depends on its own tokens, pages and chain only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc.plan import ExecutionPlan
from blockc.zoo import Zoo
from blockc_runtime.executor.launch import StepRun
from blockc_runtime.executor.model import LoadedModel, load_model
from blockc_runtime.step import Fault, RowResult, Step, StepResult

# Called with a row's index in its step and its logits, float32 ``[samples, vocab]``.
LogitsTap = Callable[[int, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCounts:
    """What the last step took. ``base_reads``: multiplications by base weights, whoever the rows belong to."""

    launches: int = 0
    base_reads: int = 0
    tokens: int = 0


class TorchExecutor:
    """Implements :class:`~blockc_runtime.step.Executor`.

    ``logits_tap`` sees the logits of every sampled row before tokens are drawn. Construction raises
    :class:`~blockc.diag.DiagnosticError`; a fine-tune that fails to load only disables its own chain (``disabled``).
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        zoo: Zoo,
        *,
        device: str | torch.device = "cpu",
        logits_tap: LogitsTap | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.logits_tap = logits_tap
        self.counts = StepCounts()
        with torch.inference_mode():
            self._model: LoadedModel | None = load_model(plan, zoo, device=self.device)
        self._queue: deque[Step] = deque()

    @property
    def disabled(self) -> dict[int, str]:
        """Chains that cannot be served, and why."""
        return {} if self._model is None else dict(self._model.disabled)

    def submit(self, step: Step) -> None:
        """Queue a step. It runs when it is collected."""
        self._queue.append(step)

    def collect(self) -> StepResult:
        """Run the oldest queued step. Raises RuntimeError only if there is none or the executor is closed."""
        if not self._queue:
            raise RuntimeError("no step is queued")
        step = self._queue.popleft()
        if self._model is None:
            raise RuntimeError("the executor is closed")
        try:
            with torch.inference_mode():
                run = StepRun(self._model, step, device=self.device, logits_tap=self.logits_tap)
                results = run.run()
        except Exception as error:
            # Not any row's doing: what is known of none of them can be trusted.
            fault = Fault(scope="worker", message=f"{type(error).__name__}: {error}"[:500])
            results = tuple(RowResult(tokens=(), logprobs=(), fault=fault) for _ in step.rows)
        else:
            self.counts = StepCounts(launches=run.launches, base_reads=run.base_reads, tokens=run.tokens)
        return StepResult(step=step.id, rows=results)

    def close(self) -> None:
        """Free weights and pages. Idempotent."""
        self._model = None
        self._queue.clear()
