"""Compare what a plan serves with the same models run alone.

In: a plan and its zoo. Out: per app the largest logit error and how often greedy tokens agree. All apps run together
in mixed batches through the runtime's own scheduler and executor, prompts interleaved and chunked; the reference runs
each request alone through transformers and PEFT.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from blockc.ir import DTYPE_NAME
from blockc.plan import AppEntry, ExecutionPlan, reads_whole_texts
from blockc.verify.evaluated import EvaluatedReference, is_lossy
from blockc.verify.reference import Reference, check_files, quiet, reference, vector_reference
from blockc.verify.served import Answer, Question, serve_greedily, yields_vectors
from blockc.zoo import Zoo

# Tokens are compared only where the reference is sure of its choice: its two best logits differ by more than this
# many times the error that was measured. Closer calls are near ties, counted apart.
_NEAR_TIE = 10.0
# Vocabularies of encoders begin with their special tokens.
_SPECIAL_TOKENS = 5
_BOUND_FLOAT32 = 1e-3
# A correct engine in bfloat16 rounds in another order than the reference does: it may be this many times as far from
# the float32 result as the reference itself.
_BOUND_ROUNDING = 4.0


class Oracle(Protocol):
    """What answers are compared with."""

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Float32 logits ``[len(tokens), vocab]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppReport:
    """How one app compares.

    ``max_error``: largest difference of any logit; ``bound``: what is allowed; ``agreed`` of ``tokens`` greedy choices
    are the reference's, ``near_ties`` of the others are too close to call. ``original_error``: of a model that is lossy
    on purpose, the largest difference from its files; the reference is then what the plan says that it serves.
    """

    app: str
    model: str
    prompts: int
    tokens: int
    agreed: int
    near_ties: int
    max_error: float
    bound: float
    original_error: float | None = None

    @property
    def passed(self) -> bool:
        """Within the bound, and no token differs that is not a near tie."""
        return self.max_error <= self.bound and self.agreed + self.near_ties == self.tokens


@quiet()
def verify(
    plan: ExecutionPlan,
    zoo: Zoo,
    *,
    root: Path,
    prompts: int = 32,
    output_tokens: int = 16,
    max_error: float | None = None,
    seed: int = 0,
    on_app: Callable[[AppReport], None] = lambda report: None,
) -> tuple[AppReport, ...]:
    """Verify every app. ``max_error`` None: 1e-3 in float32, four times the reference's own rounding otherwise."""
    check_files(plan, root)  # serving takes minutes
    questions = _questions(plan, prompts=prompts, output_tokens=output_tokens, seed=seed)
    answers = serve_greedily(plan, zoo, questions)
    reports: list[AppReport] = []
    for index, app in enumerate(plan.apps):
        own = [(question, answer) for question, answer in zip(questions, answers, strict=True) if question.app == index]
        if yields_vectors(plan, index):
            each = plan.chains[app.chain].each_token
            pairs = [(question, answer.logits if each else answer.logits[-1]) for question, answer in own]
            report = _compare_vectors(plan, app, root, pairs, max_error)
            if is_lossy(plan, app.model) and not reads_whole_texts(plan, app.chain):
                report = _against_plan(report, EvaluatedReference(plan, zoo, app.chain), pairs)
            reports.append(report)
            on_app(report)
            continue
        dtype = getattr(torch, DTYPE_NAME[plan.paths[plan.chains[app.chain].path].dtype])
        with reference(plan, app.model, root, dtype) as oracle:
            bound = max_error if max_error is not None else _bound(plan, app.model, root, dtype, oracle, own)
            if is_lossy(plan, app.model):
                original = max(
                    _distance(answer.logits, _expected(question, answer, oracle)) for question, answer in own
                )
                evaluated = EvaluatedReference(plan, zoo, app.chain)
                report = _compare(app.address, app.model, own, evaluated, bound)
                report = replace(report, original_error=original)
            else:
                report = _compare(app.address, app.model, own, oracle, bound)
        reports.append(report)
        on_app(report)
    return tuple(reports)


def _questions(plan: ExecutionPlan, *, prompts: int, output_tokens: int, seed: int) -> list[Question]:
    """Random token ids, lengths from one token to past a chunk, the apps taking turns."""
    rng = random.Random(seed)  # noqa: S311 - prompts, not secrets
    questions: list[Question] = []
    for turn in range(prompts):
        for index, app in enumerate(plan.apps):
            chain = plan.chains[app.chain]
            room = chain.max_model_len - len(chain.virtual_tokens) - output_tokens
            if reads_whole_texts(plan, app.chain):
                room = min(room, plan.batching.max_batched_tokens)
            length = 1 if turn == 0 else rng.randint(2, max(2, min(room, 96 if turn % 8 else 320)))
            # RoBERTa and its descendants give a padding token inside a text no position: texts have none.
            lowest = _SPECIAL_TOKENS if yields_vectors(plan, index) else 0
            tokens = tuple(rng.randrange(lowest, chain.vocab_size) for _ in range(min(length, room)))
            questions.append(Question(app=index, tokens=tokens, output_tokens=output_tokens))
    return questions


def _compare(
    address: str, model: str, own: Sequence[tuple[Question, Answer]], oracle: Oracle, bound: float
) -> AppReport:
    max_error = 0.0
    margins: list[tuple[bool, float]] = []
    for question, answer in own:
        theirs = _expected(question, answer, oracle)
        max_error = max(max_error, _distance(answer.logits.float(), theirs))
        for row, token in zip(theirs, answer.tokens, strict=True):
            best, second = row.topk(2).values.tolist()
            margins.append((int(row.argmax()) == token, best - second))
    disagreed = [margin for agreed, margin in margins if not agreed]
    return AppReport(
        app=address,
        model=model,
        prompts=len(own),
        tokens=len(margins),
        agreed=len(margins) - len(disagreed),
        near_ties=sum(margin < _NEAR_TIE * max_error for margin in disagreed),
        max_error=max_error,
        bound=bound,
    )


def _compare_vectors(
    plan: ExecutionPlan,
    app: AppEntry,
    root: Path,
    pairs: Sequence[tuple[Question, torch.Tensor]],
    max_error: float | None,
) -> AppReport:
    dtype = getattr(torch, DTYPE_NAME[plan.paths[plan.chains[app.chain].path].dtype])
    with vector_reference(plan, app.model, root, dtype) as oracle:
        theirs = [oracle.vector(question.tokens) for question, _ in pairs]
    if max_error is None and dtype != torch.float32:
        with vector_reference(plan, app.model, root, torch.float32) as exact:
            rounding = [
                float((vector - exact.vector(question.tokens)).abs().max())
                for vector, (question, _) in zip(theirs, pairs, strict=True)
            ]
        max_error = _BOUND_ROUNDING * max(rounding)
    errors = [_distance(ours, vector) for (_, ours), vector in zip(pairs, theirs, strict=True)]
    return AppReport(
        app=app.address, model=app.model, prompts=len(pairs), tokens=0, agreed=0, near_ties=0,
        max_error=max(errors), bound=_BOUND_FLOAT32 if max_error is None else max_error,
    )  # fmt: skip


def _against_plan(report: AppReport, oracle: Oracle, pairs: Sequence[tuple[Question, torch.Tensor]]) -> AppReport:
    """Scores of a model that is lossy on purpose, against what the plan says that it serves."""
    errors = [
        _distance(ours, theirs if ours.dim() > 1 else theirs[-1])
        for question, ours in pairs
        for theirs in [oracle.logits(question.tokens)]
    ]
    return replace(report, max_error=max(errors), original_error=report.max_error)


def _expected(question: Question, answer: Answer, oracle: Oracle) -> torch.Tensor:
    """The reference's logits at the positions that the served tokens were drawn from, given those tokens."""
    sequence = [*question.tokens, *answer.tokens]
    return oracle.logits(sequence)[len(question.tokens) - 1 : len(sequence) - 1]


def _bound(
    plan: ExecutionPlan,
    model: str,
    root: Path,
    dtype: torch.dtype,
    oracle: Reference,
    own: Sequence[tuple[Question, Answer]],
) -> float:
    if dtype == torch.float32:
        return _BOUND_FLOAT32
    rounding = 0.0
    with reference(plan, model, root, torch.float32) as exact:
        for question, answer in own:
            difference = _expected(question, answer, oracle) - _expected(question, answer, exact)
            rounding = max(rounding, float(difference.abs().max()))
    return _BOUND_ROUNDING * rounding


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference. Logits that are no numbers are infinitely far off: `max` would pass over a NaN."""
    worst = float((ours - theirs).abs().max())
    return worst if math.isfinite(worst) else math.inf


def failed(reports: Sequence[AppReport]) -> Mapping[str, AppReport]:
    """The apps that did not pass, by address."""
    return {report.app: report for report in reports if not report.passed}
