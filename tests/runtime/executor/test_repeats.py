"""Calls that are repeated for another number of tokens: the same results, in memory that is used again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blockc_runtime.executor import repeats
from blockc_runtime.executor.repeats import Repeats
from blockc_runtime.native import library
from blockc_runtime.native.queue import record, together
from blockc_runtime.native.template import Operand, Template, template_of
from blockc_runtime.ops.linear.by_kernel import kernel_weights
from blockc_runtime.ops.norm.native import gated, rms_norm
from blockc_runtime.ops.residual.native import residual
from tests.runtime.executor.driver import Driver, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder
from tests.runtime.executor.test_sides import ALL, make_lora, terms_of

pytestmark = pytest.mark.skipif(library.kernels() is None, reason="no kernels here")
WIDTH = 64
WEIGHT = torch.linspace(0.5, 1.5, WIDTH)
Blocks = Callable[[Tensor], Tensor]


def layers(x: Tensor) -> Tensor:
    for _ in range(4):
        normed = rms_norm(x, WEIGHT, 1e-6)
        x = residual(x, gated(normed, x, "silu"), ())
    return x


def of_other_tokens(x: Tensor) -> Tensor:
    """The second and third token are normed by themselves: what they are, an address does not say of other steps."""
    y = rms_norm(x, WEIGHT, 1e-6)
    rms_norm(y[:, 1:3], WEIGHT, 1e-6)
    return residual(y, x, ())


def template(blocks: Blocks, tokens: int) -> Template | None:
    x = torch.randn(1, tokens, WIDTH)
    with together():
        out, recorded = record(lambda: blocks(x))
        assert recorded is not None
        return template_of(recorded, tokens, [Operand(tensor=x)], out)


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(2, 40), min_size=2, max_size=6), fill=st.sampled_from([0.0, float("nan")]))
def test_whatever_the_number_of_tokens(counts: list[int], fill: float) -> None:
    own, ran = Repeats(), []
    for tokens in counts:
        x = torch.randn(1, tokens, WIDTH)

        def blocks(x: Tensor = x) -> Tensor:
            ran.append(x.shape[1])
            return layers(x)

        own._between.view(torch.float32).fill_(fill)  # whatever was there before
        with together():
            out = own.run("layers", tokens, [Operand(tensor=x)], blocks)
        assert torch.equal(out, layers(x))
    assert ran == counts[:1]


def test_memory_is_used_again() -> None:
    """What a layer leaves is not needed two layers later."""
    found = template(layers, 5)
    assert found is not None
    assert found.between == 3 * 4 * WIDTH  # of the twelve values between kernels


def test_calls_of_single_tokens_are_not_repeated() -> None:
    assert template(of_other_tokens, 5) is None
    own = Repeats()
    for tokens in (5, 4):
        x = torch.randn(1, tokens, WIDTH)
        with together():
            out = own.run("others", tokens, [Operand(tensor=x)], lambda x=x: of_other_tokens(x))  # type: ignore[misc]
        assert torch.equal(out, of_other_tokens(x))


def test_steps_that_need_much_memory_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_MOST_BYTES", 8 * 3 * 4 * WIDTH)
    own, ran = Repeats(), []
    for tokens in (4, 8, 9, 5):
        x = torch.randn(1, tokens, WIDTH)

        def blocks(x: Tensor = x) -> Tensor:
            ran.append(x.shape[1])
            return layers(x)

        with together():
            out = own.run("layers", tokens, [Operand(tensor=x)], blocks)
        assert torch.equal(out, layers(x))
    assert ran == [4, 9]
    assert own.nbytes <= repeats._MOST_BYTES


def test_of_lists_of_calls_a_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_MOST", 2)
    own, ran = Repeats(), []
    x = torch.randn(1, 3, WIDTH)
    for key in (0, 1, 0, 2, 0, 1):
        with together():
            own.run(key, 3, [Operand(tensor=x)], lambda key=key: (ran.append(key), layers(x))[1])  # type: ignore[misc]
    assert ran == [0, 1, 2, 1]


@pytest.mark.skipif(kernel_weights(torch.bfloat16, torch.device("cpu")) is None, reason="linears are torch's here")
def test_rows_that_come_and_go_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding, prompts, and both: in one number of rows and tokens, and then in others."""
    model = make_llama(dtype=torch.bfloat16)
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    tuned = [make_lora(seed, rank=8, targets=ALL, dtype=torch.bfloat16) for seed in range(2)]
    builder.add(llama_spec(model), sides=((), *(terms_of(own) for own in tuned)))
    plan = builder.build()
    lengths = ((0, 5), (1, 3), (2, 9), (1, 4), (0, 2), (2, 7), (1, 17))

    def logits(most_bytes: int) -> tuple[list[Tensor], int]:
        monkeypatch.setattr(repeats, "_MOST_BYTES", most_bytes)
        driver, ran = Driver(plan, builder.zoo), 0
        first = Repeats._first

        def counted(self: Repeats, *args: object) -> Tensor:
            nonlocal ran
            ran += 1
            return first(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Repeats, "_first", counted)
        done, under_way = [], []
        for chain, length in lengths:  # a prompt in each step, beside whoever decodes
            under_way.append(driver.start(chain, [3 + chain, *range(5, 4 + length)]))
            driver.advance([(own, len(own.tokens) - own.cached) for own in under_way])
            driver.advance([(own, 1) for own in under_way])
            if len(under_way) == 4:
                done.append(under_way.pop(0))
        monkeypatch.setattr(Repeats, "_first", first)
        return [own for sequence in (*done, *under_way) for own in sequence.logits], ran

    (repeated, few), (apart, _) = logits(16 << 20), logits(0)
    assert all(torch.equal(one, other) for one, other in zip(repeated, apart, strict=True))
    # Fine-tunes or none; one token; tokens of prompts, of rows that decode, of both.
    assert few <= 2 * 4
