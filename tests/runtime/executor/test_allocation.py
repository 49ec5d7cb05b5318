"""Memory that runs out in the middle of a step: at any op, and for one request for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blockc_runtime.step import Row, RowResult
from tests.conftest import Promised
from tests.runtime.executor.driver import Driver, Sequence_, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder
from tests.support.device import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="steps of a device are recorded, not dispatched op by op")
PROMPTS = ([1, 2, 3, 4], [7, 8], [11, 12, 13])


class Failing(TorchDispatchMode):
    """Counts the ops that torch makes; number ``at``, or whichever makes more than ``most`` values, finds no memory."""

    def __init__(self, *, at: int | None = None, most: int | None = None) -> None:
        super().__init__()
        self.at, self.most, self.count, self.widest = at, most, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        made = func(*args, **(kwargs or {}))
        values = made.numel() if isinstance(made, Tensor) else 0
        self.widest = max(self.widest, values)
        too_much = self.most is not None and values > self.most
        if self.count == self.at or too_much:
            raise torch.OutOfMemoryError("out of memory")
        return made


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama(), cuts=(3,)))
    return Driver(builder.build(), builder.zoo)


@contextmanager
def rows_of(driver: Driver, prompts: tuple[list[int], ...]) -> Iterator[list[Row]]:
    """Prompts as rows; their pages are free again behind the block."""
    sequences: list[Sequence_] = [driver.start(0, prompt) for prompt in prompts]
    yield [driver.row(own, len(own.tokens), samples=1) for own in sequences]
    for own in sequences:
        for free, table in zip(driver.free, own.pages, strict=True):
            free.extend(page for page in table if page is not None)


def stepped(driver: Driver, prompts: tuple[list[int], ...], mode: Failing) -> tuple[RowResult, ...]:
    with rows_of(driver, prompts) as rows, mode:
        return driver.step(rows)


@pytest.mark.promise("faults")
def test_an_allocation_fails_at_every_op(driver: Driver, promised: Promised):
    """Each op of a step in turn: nobody's answer is lost, and none is another."""
    counting = Failing()
    expected = stepped(driver, PROMPTS, counting)
    assert all(result.fault is None for result in expected)
    assert counting.count > 30
    spoiled, whole_step = set(), set()
    for at in range(1, counting.count + 1):
        results = stepped(driver, PROMPTS, Failing(at=at))
        scopes = {result.fault.scope for result in results if result.fault is not None}
        if "worker" in scopes:
            whole_step.add(at)
            continue
        for result, own in zip(results, expected, strict=True):
            assert result.fault is not None or result.tokens == own.tokens
        if scopes:
            spoiled.add(at)
    assert spoiled == set(), "what failed once is tried again"
    assert whole_step == set()
    assert stepped(driver, PROMPTS, Failing()) == expected
    promised(
        "allocation failure at op N, for every N", "only that request fails",
        f"{counting.count} ops of a step of {len(PROMPTS)} requests: {len(spoiled)} lost a request, "
        f"{len(whole_step)} the step", kept=not spoiled and not whole_step,
    )  # fmt: skip


@pytest.mark.promise("faults")
def test_a_request_that_never_finds_memory_fails_alone(driver: Driver, promised: Promised):
    long = list(range(1, 61))
    counting = Failing()
    alone = stepped(driver, PROMPTS, counting)
    results = stepped(driver, (*PROMPTS, long), Failing(most=counting.widest))
    assert results[-1].fault is not None
    assert results[-1].fault.scope == "launch"
    assert "out of memory" in results[-1].fault.message
    assert [result.tokens for result in results[:-1]] == [result.tokens for result in alone]
    assert all(result.fault is None for result in results[:-1])
    figure = f"{len(PROMPTS)} of {len(PROMPTS)} other requests of its step answered the same"
    promised("a request too large for memory", "only that request fails", figure, kept=True)
