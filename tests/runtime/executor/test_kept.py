"""A plan loaded beside another, or in its place: what both have is kept, and each answers as it does alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blockc.ir.tensor import TensorRef
from blockc.plan import ExecutionPlan
from blockc.zoo import StoredTensor, Zoo
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.kv.carry import carried_groups
from tests.runtime.executor.driver import Driver, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder, Term
from tests.support.device import DEVICE

PROMPT = list(range(1, 22))
HIDDEN = 64


class ReadingZoo(Zoo):
    """A zoo that remembers what was read of it."""

    reads: set[str]

    def tensor(self, digest: str) -> StoredTensor:
        self.reads.add(digest)
        return super().tensor(digest)


def lora(seed: int) -> tuple[Term, ...]:
    drawn = torch.Generator().manual_seed(seed)
    return tuple(
        Term(
            occurrence=occurrence, site="self_attn.q_proj",
            a=torch.randn(4, HIDDEN, generator=drawn), b=torch.randn(HIDDEN, 4, generator=drawn), scale=0.5,
        )
        for occurrence in (1, 3)
    )  # fmt: skip


def plan_of(zoo: Zoo, *models: object, sides: tuple[tuple[Term, ...], ...], pages: int = 64) -> ExecutionPlan:
    builder = PlanBuilder(zoo, pages=pages)
    for model in models:
        builder.add(llama_spec(model), sides)
    return builder.build()


def driver_on(plan: ExecutionPlan, zoo: Zoo, executor: TorchExecutor) -> Driver:
    driver = Driver(plan, zoo)
    driver.executor.close()
    driver.executor = executor
    executor.logits_tap = lambda row, logits: driver._tap(row, logits)
    return driver


def answers(driver: Driver, chains: range) -> list[list[int]]:
    sequences = [driver.start(chain, PROMPT) for chain in chains]
    driver.generate(sequences, 5, chunk=8)
    return [sequence.tokens for sequence in sequences]


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return new_zoo(tmp_path / "zoo")


def test_beside_another_plan(zoo: Zoo) -> None:
    first, second = make_llama(0), make_llama(1)
    old = plan_of(zoo, first, sides=((), lora(1)))
    new = plan_of(zoo, second, first, sides=((), lora(2), lora(1)))
    wanted = answers(Driver(old, zoo), range(2)), answers(Driver(new, zoo), range(6))
    before = TorchExecutor(old, zoo, device=DEVICE)
    reading = ReadingZoo(zoo.root)
    reading.reads = set()
    after = TorchExecutor(new, reading, device=DEVICE, before=before)
    kept = {ref.digest for ref in tensors(old)}
    # What says that values are finite, and biases that sides are folded with, may be read again: no base weights are.
    assert not reading.reads & kept
    assert before._model is not None
    assert after.kept_bytes == before._model.weights_bytes
    assert after._model is not None
    assert after.loaded_bytes == after._model.weights_bytes + after._model.sides_bytes - after.kept_bytes
    both = driver_on(old, zoo, before), driver_on(new, zoo, after)
    assert (answers(both[0], range(2)), answers(both[1], range(6))) == wanted
    before.close()
    assert answers(both[1], range(6)) == wanted[1]


def test_banks_of_the_same_fine_tunes_are_kept(zoo: Zoo) -> None:
    model = make_llama(0)
    old = plan_of(zoo, model, sides=((), lora(1), lora(2)))
    new = plan_of(zoo, model, sides=(lora(1), lora(2)))
    before = TorchExecutor(old, zoo, device=DEVICE)
    after = TorchExecutor(new, zoo, device=DEVICE, before=before)
    assert after.loaded_bytes == 0
    assert answers(driver_on(new, zoo, after), range(2)) == answers(Driver(new, zoo), range(2))


def test_what_is_in_the_pages_is_read_by_both(zoo: Zoo) -> None:
    """A prompt that the old plan has read goes on in the new one, in the same pages."""
    model, other = make_llama(0), make_llama(1)
    old, new = plan_of(zoo, model, sides=((),)), plan_of(zoo, other, model, sides=((),))
    carried = carried_groups(old, new.model_copy(update={"kv_groups": (new.kv_groups[0],) * 2}))
    before = TorchExecutor(old, zoo, device=DEVICE)
    after = TorchExecutor(new, zoo, device=DEVICE, before=before, carried={1: 0})
    assert carried  # alike in shape
    assert before._model is not None
    assert after._model is not None
    assert after._model.pools[1] is before._model.pools[0]
    one, two = driver_on(old, zoo, before), driver_on(new, zoo, after)
    read = one.start(0, PROMPT)
    one.advance([(read, len(PROMPT))])
    goes_on = two.start(1, read.tokens)
    goes_on.pages, goes_on.cached, goes_on.drawn = read.pages, read.cached, read.drawn
    two.generate([goes_on], 6)
    alone = one.start(0, PROMPT)
    one.generate([alone], 6)
    assert goes_on.tokens == alone.tokens


def test_in_the_place_of_another_plan(zoo: Zoo) -> None:
    first, second = make_llama(0), make_llama(1)
    old = plan_of(zoo, first, second, sides=((), lora(1)))
    new = plan_of(zoo, first, sides=((), lora(1)), pages=32)
    wanted = answers(Driver(new, zoo), range(2))
    before = TorchExecutor(old, zoo, device=DEVICE)
    after = TorchExecutor(new, zoo, device=DEVICE, before=before, alone=True)
    assert before._model is None
    assert after._model is not None
    assert after.kept_bytes == after._model.weights_bytes + after._model.sides_bytes
    assert answers(driver_on(new, zoo, after), range(2)) == wanted


def test_groups_go_on_where_they_are_alike(zoo: Zoo) -> None:
    model = make_llama(0)
    old = plan_of(zoo, model, sides=((),))
    assert carried_groups(old, plan_of(zoo, model, sides=((), lora(1)))) == {0: 0}
    assert carried_groups(old, plan_of(zoo, model, sides=((),), pages=63)) == {}
    assert carried_groups(old, plan_of(zoo, make_llama(0, layers=2), sides=((),))) == {}


def tensors(plan: ExecutionPlan) -> list[TensorRef]:
    return [ref for block in plan.blocks.values() for ref in block.tensors.values()]
