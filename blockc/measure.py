"""Steps of a plan, measured: the runtime's scheduler and executor under loads that are chosen for their shapes.

In: a plan and an executor of it. Out: samples, each the shape of a step with the seconds from its choice to its results
taken in, which is what a step takes in the engine. Loads: few and many rows, on one chain and on all, with prompts from
short to two steps' worth, so that steps read, compute and see caches in different parts. A shape that came
several times counts once, with the median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from blockc.cost.fit import RowShape, Sample
from blockc.plan import ExecutionPlan
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import EngineLimits, engine_limits
from blockc_runtime.request import EndEvent, Request, Sampling
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import Executor, Step
from blockc_runtime.turn import next_step

_OUTPUT_TOKENS: Final = 6
_PROMPTS: Final = (8, 64, 256, 1024)
_GREEDY: Final = Sampling()
_READING_S: Final = 0.001  # how long to wait for sides that are being read, when nothing else can run


class MeasuringError(Exception):
    """A step failed: what it took says nothing."""


def measure(
    plan: ExecutionPlan,
    executor: Executor,
    *,
    repeats: int = 3,
    budget_s: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
    on_load: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Sample, ...]:
    """Run every load ``repeats`` times, and once before to warm up; small ones first, none after ``budget_s``.

    ``on_load``: loads done, of how many.
    """
    limits = replace(engine_limits(plan), prefill_parts=1)  # prices are of whole passes
    loads = sorted(_loads(plan, limits), key=lambda load: (len(load[0]) * load[1], load))
    end_s = clock() + budget_s
    found: dict[tuple[RowShape, ...], list[float]] = {}
    for number, chains_and_prompt in enumerate(loads):
        for turn in range(repeats + 1):
            for step, seconds in _run(plan, limits, executor, *chains_and_prompt, clock=clock):
                if turn:
                    found.setdefault(_shape(step), []).append(seconds)
        on_load(number + 1, len(loads))
        if clock() >= end_s:
            break
    return tuple(Sample(rows=rows, seconds=statistics.median(times)) for rows, times in found.items() if min(times) > 0)


def _loads(plan: ExecutionPlan, limits: EngineLimits) -> Iterator[tuple[tuple[int, ...], int]]:
    """The chain of each request, and the tokens of its prompt."""
    served = sorted({app.chain for app in plan.apps if not plan.chains[app.chain].labels})
    rows = sorted({1, 2, 4, 8, 16, 32, 64, limits.max_rows})
    for count in (count for count in rows if count <= limits.max_rows):
        for prompt in _PROMPTS:
            for chains in {(served[0],) * count, tuple(served[i % len(served)] for i in range(count))}:
                longest = min(
                    plan.chains[chain].max_model_len - len(plan.chains[chain].virtual_tokens) for chain in chains
                )
                if prompt + _OUTPUT_TOKENS <= longest and prompt * count <= 2 * limits.max_batched_tokens:
                    yield chains, prompt


def _run(
    plan: ExecutionPlan,
    limits: EngineLimits,
    executor: Executor,
    chains: Sequence[int],
    prompt: int,
    *,
    clock: Callable[[], float],
) -> Iterator[tuple[Step, float]]:
    """Requests that come at once, until all have ended."""
    scheduler = Scheduler(limits, KvIndex(limits), max_waiting=len(chains))
    app_of = {app.chain: index for index, app in reversed(list(enumerate(plan.apps)))}
    for number, chain in enumerate(chains):
        vocab = plan.chains[chain].vocab_size
        scheduler.admit(
            Request(
                id=str(number),
                app=app_of[chain],
                chain=chain,
                isolation_group=f"measured {number}",
                prompt=tuple((7 * number + 3 * place) % vocab for place in range(prompt)),
                emitted=0,
                max_tokens=_OUTPUT_TOKENS,
                stop_token_ids=(),
                sampling=_GREEDY,
            )
        )
    while scheduler.has_work:
        start_s = clock()
        ends, step = next_step(scheduler, executor, start_s)
        for end in ends:
            if isinstance(end, EndEvent):
                raise MeasuringError(end.message)
        if step is None:
            if not scheduler.is_reading:
                raise MeasuringError("the requests of a load do not fit the KV cache")
            time.sleep(_READING_S)
            continue
        executor.submit(step)
        result = executor.collect()
        fault = next((row.fault for row in result.rows if row.fault is not None), None)
        if fault is not None:
            raise MeasuringError(fault.message)
        scheduler.complete(step, result, clock())
        if not step.fills:  # what filling slots takes is no part of a step's work
            yield step, clock() - start_s


def _shape(step: Step) -> tuple[RowShape, ...]:
    return tuple(
        RowShape(chain=row.chain, start=row.start, tokens=len(row.tokens), samples=row.samples > 0) for row in step.rows
    )
