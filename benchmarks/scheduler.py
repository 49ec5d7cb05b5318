"""What scheduling costs: microseconds per schedule + complete, without a model, in CPU time: neighbours do not count.

Run by hand: ``python benchmarks/scheduler.py``. Steady decode at 64 rows with 1,000 requests waiting for a place, over
1, 16 and 1,000 chains; then the start of requests with and without a cached prefix.
"""

from __future__ import annotations

import statistics
import time

from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import ChainLimits, EngineLimits, GroupLimits
from blockc_runtime.request import Request, Sampling
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import RowResult, Step, StepResult

ROWS = 64
PROMPT_TOKENS = 1024


def limits(*, chains: int, pages: int, tenants: int = 16) -> EngineLimits:
    """A full and a windowed KV group, and three segments, shared by all chains."""
    return EngineLimits(
        groups=(
            GroupLimits(pages=pages, page_tokens=16, window=None),
            GroupLimits(pages=pages, page_tokens=16, window=512),
        ),
        chains=tuple(
            ChainLimits(
                groups=(0, 1), domains=(f"a{index}", f"b{index}"), segments=(0, 1, 2), instance=0, max_model_len=8192
            )
            for index in range(chains)
        ),
        segment_count=3,
        max_batched_tokens=2048,
        max_rows=ROWS,
        tenants=tuple(app % tenants for app in range(chains * tenants)),
        weights=(1.0,) * tenants,
    )


def fill(scheduler: Scheduler, count: int, *, chains: int, tenants: int = 16, shared_tokens: int = 0) -> None:
    for number in range(count):
        own = tuple((number * 7919 + position) % 50_000 for position in range(PROMPT_TOKENS - shared_tokens))
        events = scheduler.admit(
            Request(
                id=f"r{number}",
                app=number % (chains * tenants),
                chain=number % chains,
                isolation_group="g",
                prompt=tuple(range(shared_tokens)) + own,
                emitted=0,
                max_tokens=4096,
                stop_token_ids=(),
                sampling=Sampling(),
            )
        )
        assert not events


def answer(step: Step) -> StepResult:
    rows = tuple([RowResult(tokens=(7,) * row.samples, logprobs=()) for row in step.rows])
    return StepResult(step=step.id, rows=rows)


def turn(scheduler: Scheduler) -> tuple[float, Step]:
    """One schedule + complete; seconds, without the executor's part."""
    begin = time.process_time()
    step = scheduler.schedule(0.0)
    scheduled = time.process_time()
    assert step is not None
    result = answer(step)
    resumed = time.process_time()
    scheduler.complete(step, result, 0.0)
    return time.process_time() - resumed + scheduled - begin, step


def decode(*, chains: int, pages: int = 20_000, waiting: int = 1000) -> str:
    own = limits(chains=chains, pages=pages)
    scheduler = Scheduler(own, KvIndex(own))
    fill(scheduler, ROWS + waiting, chains=chains)
    for _ in range(2 * ROWS * PROMPT_TOKENS // own.max_batched_tokens):  # prefill everyone who gets in
        turn(scheduler)
    times, rows, launches = [], [], []
    for _ in range(300):
        spent_s, step = turn(scheduler)
        times.append(spent_s * 1e6)
        rows.append(len(step.rows))
        launches.append(len(step.launches))
    preempted = scheduler.gauges().counts.preemptions
    return (
        f"p50 {statistics.median(times):6.0f} us   p99 {sorted(times)[296]:6.0f} us   "
        f"{statistics.median(rows):.0f} rows, {statistics.median(launches):.0f} launches, {scheduler.waiting} waiting, "
        f"{preempted} preemptions"
    )


def prefill(*, shared_tokens: int) -> str:
    own = limits(chains=1, pages=20_000)
    scheduler = Scheduler(own, KvIndex(own))
    fill(scheduler, ROWS, chains=1, shared_tokens=shared_tokens)
    spent = []
    while scheduler.waiting:
        spent_s, _ = turn(scheduler)
        spent.append(spent_s * 1e6)
    return f"{sum(spent) / ROWS:6.0f} us a request of {PROMPT_TOKENS} tokens"


def main() -> None:
    print("decode, schedule + complete")
    print("  1 chain               ", decode(chains=1))
    print("  16 chains             ", decode(chains=16))
    print("  1000 chains           ", decode(chains=1000))
    print("  16 chains, pages short", decode(chains=16, pages=3000))
    print("prefill")
    print("  nothing cached        ", prefill(shared_tokens=0))
    print("  960 tokens cached     ", prefill(shared_tokens=960))


if __name__ == "__main__":
    main()
