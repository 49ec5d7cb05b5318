"""Run requests through the runtime's scheduler and executor in this process, keeping the logits of every token."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from blockc.diag import CODES, DiagnosticError, Diagnostics
from blockc.plan import ExecutionPlan, parts_of
from blockc.zoo import Zoo

if TYPE_CHECKING:
    from blockc_runtime.request import Event
    from blockc_runtime.step import Step

# How long to wait for sides that are being read, when nothing else can run.
_READING_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt for an app (index into the plan's apps)."""

    app: int
    tokens: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Greedy tokens and the logits ``[len(tokens), vocab]`` they were drawn from.

    Of a model that yields scores of classes, or an embedding, there are no tokens, and it is ``[1, classes or width]``.
    """

    tokens: tuple[int, ...]
    logits: torch.Tensor


def serve_greedily(
    plan: ExecutionPlan,
    zoo: Zoo,
    questions: Sequence[Question],
    *,
    together: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
) -> list[Answer]:
    """All questions, batched as a server would batch them: a few arrive in each step.

    ``together``: all of them arrive before the first step. ``on_step`` sees every step. Of a plan with several
    instances one is served after the other, each app by the first that has it. Raises `DiagnosticError`.
    """
    from blockc_runtime.capabilities import spans_engines

    _refuse(spans_engines(plan))
    answers: dict[int, Answer] = {}
    for part in parts_of(plan):
        own = [index for index, asked in enumerate(questions) if index not in answers and asked.app in part.apps]
        asked = [replace(questions[index], app=part.apps[questions[index].app]) for index in own]
        # Without questions, too: what cannot be loaded is found.
        answers |= zip(own, _served(part.plan, zoo, asked, together=together, on_step=on_step), strict=True)
    return [answers[index] for index in range(len(questions))]


def _served(
    plan: ExecutionPlan,
    zoo: Zoo,
    questions: Sequence[Question],
    *,
    together: bool,
    on_step: Callable[[Step], None],
) -> list[Answer]:
    """By one engine."""
    from blockc_runtime.capabilities import missing
    from blockc_runtime.executor.torch_ import TorchExecutor
    from blockc_runtime.kv.index import KvIndex
    from blockc_runtime.limits import engine_limits
    from blockc_runtime.request import EndEvent, Request, Sampling, TokensEvent
    from blockc_runtime.scheduler import Scheduler
    from blockc_runtime.turn import next_step

    _refuse(missing(plan))
    limits = engine_limits(plan)
    scheduler = Scheduler(limits, KvIndex(limits))
    taps: list[tuple[int, torch.Tensor]] = []
    executor = TorchExecutor(
        plan, zoo, device=plan.target, logits_tap=lambda row, logits: taps.append((row, logits.float().cpu()))
    )
    _refuse_disabled(plan, executor.disabled)
    tokens: dict[str, list[int]] = {str(index): [] for index in range(len(questions))}
    logits: dict[str, list[torch.Tensor]] = {str(index): [] for index in range(len(questions))}
    waiting = list(enumerate(questions))
    now_s = 0.0

    def take(events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, TokensEvent):
                tokens[event.request] += event.tokens
            elif isinstance(event, EndEvent) and event.reason == "error":
                _refuse((event.message,))

    while waiting or scheduler.has_work:
        arrived = len(questions) if together else _arrived(now_s)
        while waiting and len(waiting) > len(questions) - arrived:
            index, question = waiting.pop(0)
            app = plan.apps[question.app]
            scheduler.admit(
                Request(
                    id=str(index), app=question.app, chain=app.chain, isolation_group=app.isolation_group,
                    prompt=question.tokens, emitted=0, max_tokens=question.output_tokens, stop_token_ids=(),
                    sampling=Sampling(),
                ),
                now_s,
            )  # fmt: skip
        events, step = next_step(scheduler, executor, now_s)
        take(events)
        now_s += 1.0
        if step is None:
            time.sleep(_READING_S)
            continue
        on_step(step)
        taps.clear()
        executor.submit(step)
        result = executor.collect()
        for row, drawn in taps:
            logits[step.rows[row].request].append(drawn)
        take(scheduler.complete(step, result, now_s))
    executor.close()
    return [
        Answer(tokens=tuple(tokens[key]), logits=torch.cat(logits[key]))
        for key in (str(i) for i in range(len(questions)))
    ]


def yields_vectors(plan: ExecutionPlan, app: int) -> bool:
    """Whether an app's model yields one vector for a text in place of tokens."""
    return plan.chains[plan.apps[app].chain].vector_width > 0


def encode(plan: ExecutionPlan, zoo: Zoo, texts: Sequence[Question]) -> list[torch.Tensor]:
    """The vectors of texts, batched as a server would batch them if they all came at once. Raises as above."""
    return [answer.logits[-1] for answer in serve_greedily(plan, zoo, texts, together=True)]


def _arrived(now_s: float) -> int:
    """Requests that have arrived: a few a step, so that prefill and decode meet in every batch."""
    return 3 * (int(now_s) + 1)


def _refuse_disabled(plan: ExecutionPlan, disabled: Mapping[int, str]) -> None:
    """A server goes on without fine-tunes that cannot be loaded; a verification does not."""
    diags = Diagnostics()
    for app in plan.apps:
        if app.chain in disabled:
            code, _, reason = disabled[app.chain].partition(": ")
            diags.report(
                code if code in CODES else "BC905",
                f"{app.address} cannot be served: {reason if code in CODES else disabled[app.chain]}",
                help="delete the file that it names, if it names one, and compile again",
            )
    diags.raise_if_errors()


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        diags = Diagnostics()
        diags.report("BC905", f"this runtime cannot serve the plan: {', '.join(problems)}"[:500])
        raise DiagnosticError(diags)
