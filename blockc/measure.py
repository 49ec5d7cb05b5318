"""Steps of a plan, measured: the runtime's scheduler and executor under loads that are chosen for their shapes.

In: a plan and an executor of it. Out: samples, each the shape of a step with the seconds from its choice to the frame
of its tokens, which is what a step takes in the engine. Loads: few and many rows, on one chain and on all, with prompts
from short to two steps' worth, so that steps read, compute and see caches in different parts; prompts that come while
others decode, as most do under load; and prompts that pass the blocks in several steps, which tell what a step takes
from what its blocks take. All loads run once before any runs again, so that what else the machine does for a while
falls on few runs of each. A shape that came several times counts once, with the median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from blockc.cost.fit import RowShape, Sample
from blockc.plan import ExecutionPlan
from blockc_runtime.engine import step_load
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import EngineLimits, engine_limits
from blockc_runtime.request import EndEvent, Request, Sampling, TokensEvent
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import Executor, Step
from blockc_runtime.turn import next_step
from blockc_runtime.wire.frames import encode
from blockc_runtime.wire.messages import Tokens

_OUTPUT_TOKENS: Final = 6
_PROMPTS: Final = (8, 64, 256, 1024)
_PROMPTS_IN_PARTS: Final = (8, 64)
_PARTS: Final = (2, 4, 8)
_LATE: Final = (16, 64, 256)
# Of requests that come before a late prompt and decode beside it: how many at most, and tokens of their prompts.
_BESIDE: Final = 15
_PROMPT_BESIDE: Final = 8
_GREEDY: Final = Sampling()
_READING_S: Final = 0.001  # how long to wait for sides that are being read, when nothing else can run


class MeasuringError(Exception):
    """A step failed: what it took says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Load:
    """Requests that come at once. ``chains``: of each; ``prompt``: tokens of each.

    ``late``: the last one comes when the others decode, with a prompt of so many tokens; 0: it comes with them.
    ``parts``: in so many steps the prompt of the only one passes its blocks.
    """

    tokens: int
    chains: tuple[int, ...]
    prompt: int
    late: int = 0
    parts: int = 1


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

    Loads that do not fit half of the budget are left out; repeats that do not fit the rest, too: many loads tell more
    than many repeats. ``on_load``: loads run, of how many at most.
    """
    limits = engine_limits(plan)
    loads = sorted(_loads(plan, limits))
    total = len(loads) * (repeats + 1)
    start_s, done = clock(), 0
    found: dict[tuple[tuple[RowShape, ...], int], list[float]] = {}
    for turn in range(repeats + 1):
        end_s = start_s + (budget_s if turn else budget_s / 2)
        for number, load in enumerate(loads):
            for sample in passes(plan, executor, load, clock=clock):
                if turn:
                    found.setdefault((sample.rows, sample.steps), []).append(sample.seconds)
            done += 1
            on_load(done, total)
            if clock() >= end_s:
                loads = loads if turn else loads[: number + 1]
                break
        if turn and clock() >= end_s:
            break
    return tuple(
        Sample(rows=rows, seconds=statistics.median(times), steps=steps)
        for (rows, steps), times in found.items()
        if min(times) > 0
    )


def _loads(plan: ExecutionPlan, limits: EngineLimits) -> Iterator[Load]:
    served = sorted({app.chain for app in plan.apps if not plan.chains[app.chain].labels})

    def fits(chains: Sequence[int], prompt: int) -> bool:
        longest = min(plan.chains[chain].max_model_len - len(plan.chains[chain].virtual_tokens) for chain in chains)
        return prompt + _OUTPUT_TOKENS <= longest and prompt * len(chains) <= 2 * limits.max_batched_tokens

    rows = sorted({1, 2, 4, 8, 16, 32, 64, limits.max_rows})
    for count in (count for count in rows if count <= limits.max_rows):
        spread = tuple(served[i % len(served)] for i in range(count))
        for prompt in _PROMPTS:
            for chains in {(served[0],) * count, spread}:
                if fits(chains, prompt):
                    yield Load(tokens=count * prompt, chains=chains, prompt=prompt)
        for late in _LATE if 1 < count <= _BESIDE + 1 else ():
            if fits(spread, _PROMPT_BESIDE) and fits(spread[-1:], late):
                tokens = (count - 1) * _PROMPT_BESIDE + late
                yield Load(tokens=tokens, chains=spread, prompt=_PROMPT_BESIDE, late=late)
    for prompt in _PROMPTS_IN_PARTS:
        for chain in {served[0], served[-1]}:
            for parts in _PARTS:
                if fits((chain,), prompt) and parts <= sum(limits.chains[chain].blocks):
                    yield Load(tokens=prompt, chains=(chain,), prompt=prompt, parts=parts)


def passes(
    plan: ExecutionPlan, executor: Executor, load: Load, *, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Sample]:
    """The passes of a load, until all of its requests have ended. Raises `MeasuringError`."""
    limits = replace(engine_limits(plan), prefill_parts=load.parts, overlaps=False)
    if load.parts > 1:  # room for this prompt alone, whose tokens are too many to pass all blocks at once
        limits = replace(limits, max_rows=1, max_batched_tokens=load.prompt + 1)
    scheduler = Scheduler(limits, KvIndex(limits), max_waiting=len(load.chains))
    *others, last = _requests(plan, load)
    for request in others if load.late else (*others, last):
        scheduler.admit(request)
    awaits = load.late > 0
    steps, total_s, fills = 0, 0.0, False
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
        events = scheduler.complete(step, result, clock())
        tokens = tuple(event for event in events if isinstance(event, TokensEvent))
        encode(Tokens(step=step.id, load=step_load(step), started=(), events=tokens))
        steps, total_s, fills = steps + 1, total_s + clock() - start_s, fills or bool(step.fills)
        if step.parked:
            continue  # the pass goes on
        sample = Sample(rows=_shape(step), seconds=total_s, steps=steps)
        if not fills:  # what filling slots takes is no part of a step's work
            yield sample
        if awaits and sample.kind == "decode":
            scheduler.admit(last)
            awaits = False
        steps, total_s, fills = 0, 0.0, False


def _requests(plan: ExecutionPlan, load: Load) -> list[Request]:
    """Of a load, no two of whose prompts are found in each other's cache."""
    app_of = {app.chain: index for index, app in reversed(list(enumerate(plan.apps)))}
    prompts = [load.prompt] * len(load.chains)
    if load.late:
        prompts[-1] = load.late
    return [
        Request(
            id=str(number),
            app=app_of[chain],
            chain=chain,
            isolation_group=f"measured {number}",
            prompt=tuple((7 * number + 3 * place) % plan.chains[chain].vocab_size for place in range(prompt)),
            emitted=0,
            max_tokens=_OUTPUT_TOKENS,
            stop_token_ids=(),
            sampling=_GREEDY,
        )
        for number, (chain, prompt) in enumerate(zip(load.chains, prompts, strict=True))
    ]


def _shape(step: Step) -> tuple[RowShape, ...]:
    return tuple(
        RowShape(chain=row.chain, start=row.start, tokens=len(row.tokens), samples=row.samples > 0) for row in step.rows
    )
