"""Tokens that are drawn on the device, and read there by the next step: those that the host would have drawn."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc_runtime.executor.device_draw import draw_on_device, draws_alone
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.request import Sampling, Steering
from blockc_runtime.sampling import sample
from blockc_runtime.step import Feed, Launch, Row, Step
from tests.runtime.executor.driver import Driver, Sequence_, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder
from tests.runtime.executor.test_graphs import cuda_ops, recorder_here
from tests.support.device import DEVICE

__all__ = ["cuda_ops"]

VOCAB = 500


def row_of(sampling: Sampling, output_index: int = 0) -> Row:
    return Row(
        request="r", chain=0, tokens=(1,), start=0, pages=(), samples=1, sampling=sampling, output_index=output_index
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temperatures=st.lists(st.sampled_from([0.0, 0.0, 1e-3, 0.3, 1.0, 1.7, 100.0]), min_size=1, max_size=6),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    filters=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "top_k": st.sampled_from([1, 3, 499, 1000]),
                "top_p": st.sampled_from([1e-6, 0.3, 0.9, 0.999]),
                "min_p": st.sampled_from([1e-9, 0.1, 1.0]),
            },
        ),
        min_size=6,
        max_size=6,
    ),
)
def test_tokens_are_those_that_the_host_draws(seed, temperatures, scale, dtype, filters) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(temperatures), VOCAB, generator=generator) * scale).to(dtype).float()
    if seed % 3 == 0:
        logits[seed % len(temperatures), 7] = (float("nan"), float("inf"), float("-inf"))[seed % 7 % 3]
    rows = [row_of(Sampling(temperature=t, seed=seed + i, **filters[i]), i * 1000) for i, t in enumerate(temperatures)]
    wanted = sample(logits, [row.sampling for row in rows], [row.output_index for row in rows])
    flags = torch.tensor([True, False, True])
    tokens, sound, told = draw_on_device(logits.to(DEVICE), rows, flags.to(DEVICE)).found()
    assert told == flags.tolist()
    assert all(0 <= token < VOCAB for token in tokens)
    assert sound == [result.fault is None for result in wanted]
    assert [(token,) for token, ok in zip(tokens, sound, strict=True) if ok] == [
        result.tokens for result in wanted if result.fault is None
    ]


def test_large_vocabularies_and_totals_keep_every_bit() -> None:
    logits = torch.zeros(3, 1 << 18)  # all alike: the total has 58 bits
    rows = [row_of(Sampling(temperature=1.0, seed=seed), seed) for seed in range(3)]
    wanted = sample(logits, [row.sampling for row in rows], [row.output_index for row in rows])
    tokens, _, _ = draw_on_device(logits, rows, torch.ones(0)).found()
    assert [(token,) for token in tokens] == [result.tokens for result in wanted]


@pytest.mark.parametrize("more", [{"logprobs": 0}, {"steering": Steering(presence_penalty=1.0)}])
def test_what_asks_for_more_is_left_to_the_host(more) -> None:
    assert draws_alone(row_of(Sampling(temperature=1.0, top_p=0.9, top_k=3, min_p=0.1)))
    assert not draws_alone(row_of(Sampling(temperature=1.0, **more)))


def overlapping(builder: PlanBuilder, *, records: bool) -> Driver:
    plan = builder.build()
    batching = plan.batching.model_copy(update={"overlaps": True})
    driver = Driver(plan, builder.zoo)
    recorder = recorder_here() if records else None
    driver.executor = TorchExecutor(
        plan.model_copy(update={"batching": batching}), builder.zoo, device=DEVICE, runs_ahead=True,
        recorder=lambda device: recorder,
    )  # fmt: skip
    return driver


def step_of(driver: Driver, rows: list[Row]) -> Step:
    driver.steps += 1
    launches = tuple(
        Launch(instance=0, segment=segment, micro_batch=0, rows=tuple(range(len(rows))))
        for segment in range(len(driver.plan.segments))
    )
    return Step(id=driver.steps, epoch=0, rows=tuple(rows), launches=launches)


@pytest.mark.usefixtures("cuda_ops")
@pytest.mark.parametrize("records", [True, False], ids=["recorded", "op by op"])
def test_rows_are_fed_where_the_logits_are(tmp_path: Path, records: bool) -> None:
    """Each step in another order than the one that feeds it, and two of them ahead of the host."""
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(make_llama(layers=1), cuts=(2,)))
    samplings = [Sampling(), Sampling(temperature=1.5, seed=3), Sampling(temperature=0.8, seed=4)]
    prompts = [[7, 8, 9], [1, 2, 3, 4], [5, 6]]
    plain, ahead = Driver(builder.build(), builder.zoo), overlapping(builder, records=records)
    outputs = 5
    wanted = [
        tokens_alone(plain, prompt, sampling, outputs) for prompt, sampling in zip(prompts, samplings, strict=True)
    ]

    sequences = [ahead.start(0, prompt) for prompt in prompts]
    found: list[list[int]] = [[] for _ in prompts]
    rng, flights = random.Random(1), []
    source: dict[int, Feed] = {}
    for index in range(outputs):
        order = rng.sample(range(3), 3)
        rows = []
        for own in order:
            sequence = sequences[own]
            count = len(prompts[own]) if index == 0 else 1
            row = ahead.row(sequence, count, samples=1, sampling=samplings[own])
            sequence.cached += count
            rows.append(
                replace(row, output_index=index, tokens=row.tokens if index == 0 else (0,), fed=source.get(own))
            )
        step = step_of(ahead, rows)
        source = {own: Feed(step=step.id, row=place) for place, own in enumerate(order)}
        ahead.executor.submit(step)
        assert ahead.executor.counts.fed_on_device == (3 if index else 0)
        assert ahead.executor.counts.replays == (2 if records and index else 0)
        flights.append((order, ahead.executor))
        for own in order:
            sequences[own].tokens.append(0)
        if len(flights) > 1:
            take(found, *flights.pop(0))
    take(found, *flights.pop(0))
    assert found == wanted


def take(found: list[list[int]], order: list[int], executor: TorchExecutor) -> None:
    for own, result in zip(order, executor.collect().rows, strict=True):
        assert result.fault is None, result.fault
        found[own] += result.tokens


def tokens_alone(driver: Driver, prompt: list[int], sampling: Sampling, outputs: int) -> list[int]:
    sequence: Sequence_ = driver.start(0, prompt)
    for index in range(outputs):
        row = driver.row(sequence, len(sequence.tokens) - sequence.cached, samples=1, sampling=sampling)
        (result,) = driver.step([replace(row, output_index=index)])
        sequence.cached = len(sequence.tokens)
        sequence.tokens += result.tokens
    return sequence.tokens[len(prompt) :]


def test_a_step_that_draws_nothing_lets_the_host_run_on(tmp_path: Path) -> None:
    """A chunk of a prompt: the next one is launched before the device is done with it."""
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(make_llama(layers=1)))
    prompt = [7, 8, 9, 1, 2]
    wanted = tokens_alone(Driver(builder.build(), builder.zoo), prompt, Sampling(), 1)
    driver = overlapping(builder, records=False)
    sequence = driver.start(0, prompt)
    driver.executor.submit(step_of(driver, [driver.row(sequence, 3, samples=0)]))
    sequence.cached = 3
    driver.executor.submit(step_of(driver, [driver.row(sequence, 2, samples=1)]))
    assert [flight.run is not None for flight in driver.executor._queue] == [True, True]
    assert [driver.executor.collect().rows[0].tokens for _ in range(2)] == [(), tuple(wanted)]


def test_values_that_are_not_finite_are_told_when_the_step_is_taken_in(tmp_path: Path) -> None:
    """The row behind it has run meanwhile: it ends alike, takes nobody with it, and leaves nothing in its pages."""
    model = make_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[50] = float("nan")  # a token that spoils its row
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=60)
    builder.add(llama_spec(model))
    driver = overlapping(builder, records=False)
    good, bad = driver.start(0, [1, 2, 3]), driver.start(0, [4, 5, 50])
    first = step_of(driver, [driver.row(sequence, 3, samples=1) for sequence in (good, bad)])
    driver.executor.submit(first)
    for sequence in (good, bad):
        sequence.cached = 3
        sequence.tokens.append(0)
    rows = [driver.row(sequence, 1, samples=1) for sequence in (good, bad)]
    behind = [replace(row, fed=Feed(step=first.id, row=place)) for place, row in enumerate(rows)]
    driver.executor.submit(step_of(driver, behind))
    for _ in range(2):
        fine, spoiled = driver.executor.collect().rows
        assert len(fine.tokens) == 1
        assert spoiled.fault is not None
        assert "finite" in spoiled.fault.message
    loaded = driver.executor._model
    assert loaded is not None
    assert all(own.isfinite().all() for pool in loaded.pools for own in pool.memory)
