"""What a tenant notices of a noisy neighbour: times to first token in a world whose steps take time.

The same scenes first come, first served (everybody one tenant, in whose queue that is the order) show what the order
is good for. What is left is the rest of a step that is under way and a step that others fill: both are longer than an
idle engine's, and a smaller token budget shortens both.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator

import pytest

from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import ChainLimits, EngineLimits, GroupLimits
from blockc_runtime.request import Request, Sampling, TokensEvent
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import RowResult, Step, StepResult
from tests.conftest import Promised

VICTIM, NEIGHBOUR = 0, 1
# A step of a model that decodes 16 rows in 30 ms and reads 128 prompt tokens in 40.
STEP_S, TOKEN_S, LOGPROBS_S = 0.022, 0.00018, 0.0005
BLOCKS, ROWS = 18, 32
# Tokens of a step, and in how many parts a chunk may go through the layers.
CHUNKED, LAYERED = (128, 1), (512, 4)
END_S = 40.0

# (arrival, id, tenant, prompt tokens, output tokens, logprobs, when it is cancelled)
Arrival = tuple[float, str, int, int, int, bool, float | None]
Scene = Callable[[random.Random], Iterator[Arrival]]


def limits(tenants: tuple[int, ...], form: tuple[int, int] = CHUNKED) -> EngineLimits:
    chain = ChainLimits(groups=(0,), domains=("d",), segments=(0,), instance=0, max_model_len=4096, blocks=(BLOCKS,))
    budget, parts = form
    return EngineLimits(
        groups=(GroupLimits(pages=40_000, page_tokens=16, window=None),),
        chains=(chain, chain),
        segment_count=1,
        max_batched_tokens=budget,
        prefill_parts=parts,
        max_rows=ROWS,
        tenants=tenants,
        weights=(1.0,) * len(set(tenants)),
    )


def victim(rng: random.Random) -> Iterator[Arrival]:
    at_s = 0.0
    for number in range(10_000):
        at_s += rng.expovariate(2.0)
        if at_s > END_S:
            return
        yield at_s, f"v{number}", VICTIM, rng.randint(32, 96), 16, False, None


def long_prompts(rng: random.Random) -> Iterator[Arrival]:
    """More than the engine can read, a prompt of 3,000 tokens at a time."""
    for number in range(int(END_S * 2)):
        yield number / 2, f"n{number}", NEIGHBOUR, 3000, 8, False, None


def many_answers(rng: random.Random) -> Iterator[Arrival]:
    """Eight answers to every prompt, with the probabilities of all tokens."""
    for number in range(int(END_S * 8)):
        at_s = number // 8 * 1.0
        yield at_s, f"n{number}", NEIGHBOUR, 64, 200, True, None


def storm(rng: random.Random) -> Iterator[Arrival]:
    """A hundred requests a second, each given up soon."""
    for number in range(int(END_S * 100)):
        at_s = number / 100
        yield at_s, f"n{number}", NEIGHBOUR, rng.randint(64, 512), 100, False, at_s + rng.uniform(0.05, 1.5)


def duration_s(step: Step) -> float:
    """Weights are read by whoever passes them; tokens cost what they pass."""
    total_s = 0.0
    for launch in step.launches:
        first, stop = launch.blocks or (0, BLOCKS)
        tokens = sum(len(step.rows[row].tokens) for row in launch.rows)
        total_s += (STEP_S + TOKEN_S * tokens) * (stop - first) / BLOCKS
    return total_s


def times_to_first_token(
    tenants: tuple[int, ...],
    *scenes: Callable[[random.Random], Iterator[Arrival]],
    form: tuple[int, int] = CHUNKED,
) -> list[float]:
    """Of the victim, sorted."""
    own = limits(tenants, form)
    scheduler = Scheduler(own, KvIndex(own), max_waiting=100_000)
    rng = random.Random(1)
    queue: list[tuple[float, int, str, Arrival]] = []
    for number, arrival in enumerate(item for scene in scenes for item in scene(rng)):
        heapq.heappush(queue, (arrival[0], number, "admit", arrival))
        if arrival[6] is not None:
            heapq.heappush(queue, (arrival[6], number, "cancel", arrival))
    arrived = {item[3][1]: item[0] for item in queue if item[2] == "admit" and item[3][2] == VICTIM}
    first: dict[str, float] = {}
    logprobs = {item[3][1] for item in queue if item[3][5]}
    now_s = 0.0
    while len(first) < len(arrived):
        while queue and queue[0][0] <= now_s:
            _, number, what, (_, name, tenant, prompt, output, _, _) = heapq.heappop(queue)
            if what == "cancel":
                scheduler.cancel(name, now_s)
                continue
            request = Request(
                id=name, app=tenant, chain=tenant, isolation_group=str(tenant), emitted=0, max_tokens=output,
                prompt=tuple((number * 7919 + i) % 30_000 for i in range(prompt)), stop_token_ids=(),
                sampling=Sampling(),
            )  # fmt: skip
            scheduler.admit(request, now_s)
        step = scheduler.schedule(now_s)
        if step is None:
            now_s = queue[0][0]
            continue
        now_s += duration_s(step)
        now_s += LOGPROBS_S * sum(row.request in logprobs for row in step.rows)
        rows = tuple(RowResult(tokens=(1,) * row.samples, logprobs=()) for row in step.rows)
        for event in scheduler.complete(step, StepResult(step=step.id, rows=rows), now_s):
            if isinstance(event, TokensEvent) and event.request in arrived:
                first.setdefault(event.request, now_s)
    return sorted(first[name] - arrived[name] for name in arrived)


def p95(times: list[float]) -> float:
    return times[int(0.95 * len(times))]


@pytest.fixture(scope="module")
def alone_s() -> float:
    return p95(times_to_first_token((0, 1), victim))


@pytest.mark.promise("fairness")
@pytest.mark.parametrize("form", [CHUNKED, LAYERED])
@pytest.mark.parametrize("neighbour", [long_prompts, many_answers, storm])
def test_a_tenant_hardly_notices_a_noisy_neighbour(
    neighbour: Scene, form: tuple[int, int], alone_s: float, promised: Promised
) -> None:
    """Measured: 1.6, 1.8 and 1.6 times what it has alone, either way; by arrival 810, 870 and 27 times."""
    ratio = p95(times_to_first_token((0, 1), victim, neighbour, form=form)) / alone_s
    how = "" if form == CHUNKED else ", prompts in layers"
    what = f"p95 TTFT beside a neighbour with {neighbour.__name__.replace('_', ' ')}{how}"
    promised(what, "at most 2 times", f"{ratio:.2f} times", kept=ratio <= 2)
    assert ratio <= 2


@pytest.mark.parametrize("neighbour", [long_prompts, many_answers, storm])
def test_served_by_arrival_it_notices(neighbour: Scene, alone_s: float) -> None:
    assert p95(times_to_first_token((0, 0), victim, neighbour)) > 20 * alone_s


def test_places_are_given_up_to_a_share_and_no_further() -> None:
    """A tenant with all places gives half of them to one who comes; each keeps a half, and every answer is whole."""
    own = limits((0, 1))
    scheduler = Scheduler(own, KvIndex(own))
    produced: dict[str, int] = {}

    def admit(tenant: int, count: int) -> None:
        for number in range(count):
            name = f"{tenant}-{number}"
            produced[name] = 0
            prompt = tuple(range(100 * number, 100 * number + 4))
            request = Request(
                id=name, app=tenant, chain=tenant, isolation_group=str(tenant), emitted=0, max_tokens=50,
                prompt=prompt, stop_token_ids=(), sampling=Sampling(),
            )  # fmt: skip
            scheduler.admit(request)

    def step() -> list[str]:
        made = scheduler.schedule(0.0)
        assert made is not None
        rows = tuple(RowResult(tokens=(1,) * row.samples, logprobs=()) for row in made.rows)
        for event in scheduler.complete(made, StepResult(step=made.id, rows=rows), 0.0):
            if isinstance(event, TokensEvent):
                produced[event.request] += len(event.tokens)
        return [row.request[0] for row in made.rows]

    admit(0, 2 * ROWS)
    for _ in range(10):
        step()
    assert step().count("0") == ROWS
    admit(1, 2 * ROWS)
    counts = [step().count("1") for _ in range(20)]
    assert counts == [ROWS // 2] * 20
    while scheduler.has_work:
        step()
    assert set(produced.values()) == {50}
