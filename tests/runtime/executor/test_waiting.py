"""Kernels that wait for each other: where a program settles, and that it does not matter when they run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from blockc_runtime.executor import repeats
from blockc_runtime.executor.waiting import settle_between
from blockc_runtime.native import library, queue
from blockc_runtime.native.queue import at_once, call, settle, together
from blockc_runtime.ops.linear.by_kernel import kernel_weights
from blockc_runtime.ops.norm.native import rms_norm
from blockc_runtime.ops.residual.native import residual
from blockc_runtime.ops.table import op_table
from tests.runtime.executor.driver import Driver, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder
from tests.runtime.executor.test_sides import ALL, make_lora, terms_of

pytestmark = pytest.mark.skipif(library.kernels() is None, reason="no kernels here")
OPS = op_table(torch.device("cpu"))


def doubled(x: Tensor) -> Tensor:
    return x * 2


def test_what_waits_runs_in_order_and_what_it_needs_lives() -> None:
    x, weight = torch.randn(1, 3, 64), torch.ones(64)
    wanted = x + x
    for _ in range(3):
        wanted = wanted + rms_norm(wanted, weight, 1e-6)
    with together():
        y = residual(x, x, ())
        for _ in range(3):
            y = residual(y, rms_norm(y, weight, 1e-6), ())
            torch.full((1, 3, 64), float("nan"))  # whatever was freed is written to
        early = y.clone()
        settle()
        settled = y.clone()
    assert not torch.equal(early, wanted)
    assert torch.equal(settled, wanted)


def test_torch_reads_what_was_waited_for() -> None:
    x, weight = torch.randn(1, 3, 64), torch.ones(64)
    with together():
        y = residual(x, x, ())
        with at_once():
            assert torch.equal(y, x + x)
            assert torch.equal(residual(y, y, ()), 4 * x)
        # Of another dtype than the kernel takes.
        assert torch.equal(residual(y.double(), y.double(), ()), 4 * x.double())
        z = rms_norm(residual(y, y, ()), weight.double(), 1e-6)
        assert torch.equal(z, rms_norm(4 * x, weight.double(), 1e-6))


def test_what_waits_when_a_launch_fails_never_runs() -> None:
    x = torch.ones(1, 1, 64)
    out = torch.zeros_like(x)
    address = x.data_ptr()

    @together()
    def fails() -> None:
        call("add", (x, out), 0, address, address, out.data_ptr(), 64)
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        fails()
    settle()
    assert not out.any()
    call("add", (x, out), 0, address, address, out.data_ptr(), 64)
    assert (out == 2).all()


def test_kernels_that_wait_are_those_of_the_library() -> None:
    names = library.loaded().queued
    assert {"add", "rms_norm", "gated", "low_rank", "attend", "attend_chunks", "by_panels"} <= names.keys()
    assert all(getattr(library.loaded(), name) is not None for name in names)
    assert queue._floats("rms_norm") == (7,)


def test_programs_settle_before_others_read() -> None:
    graph = fx.Graph()
    x, weight = graph.placeholder("value_x"), graph.placeholder("param_0")
    of_weight = graph.call_function(doubled, (weight,))
    normed = graph.call_function(OPS.rms_norm, (x, of_weight, 1e-6))
    once = graph.call_function(doubled, (normed,))
    twice = graph.call_function(doubled, (once,))
    summed = graph.call_function(OPS.residual, (twice, x, ()))
    graph.output(graph.call_function(doubled, (summed,)))
    assert not settle_between(graph, OPS)
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [
        doubled, OPS.rms_norm, settle, doubled, doubled, OPS.residual, settle, doubled,
    ]  # fmt: skip


def test_programs_of_kernels_and_a_sum_can_be_repeated() -> None:
    graph = fx.Graph()
    x, weight = graph.placeholder("value_x"), graph.placeholder("param_0")
    normed = graph.call_function(OPS.rms_norm, (x, weight, 1e-6))
    graph.output(graph.call_function(OPS.residual, (x, normed, ())))
    assert settle_between(graph, OPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_the_same_whenever_kernels_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Prompts and single tokens, on the base and on fine-tunes of two ranks, in two segments."""
    model = make_llama(dtype=dtype)
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    tuned = [make_lora(seed, rank=rank, targets=ALL, dtype=dtype) for seed, rank in enumerate((4, 16))]
    builder.add(llama_spec(model, cuts=(3,)), sides=((), *(terms_of(own) for own in tuned)))
    plan = builder.build()
    by_kernels = kernel_weights(dtype, torch.device("cpu")) is not None

    def logits(waiting_bytes: int, repeats_bytes: int) -> list[Tensor]:
        monkeypatch.setattr(queue, "_MOST_BYTES", waiting_bytes)
        monkeypatch.setattr(repeats, "_MOST_BYTES", repeats_bytes)
        driver = Driver(plan, builder.zoo)
        sequences = [driver.start(chain, [3 + chain, 5, 7, 11, 13]) for chain in (0, 1, 2, 0)]
        driver.generate(sequences[:3], 3, chunk=4)
        driver.generate(sequences, 6, chunk=4)  # one more row, and then others of the same number
        driver.generate(sequences, 8)
        own = driver.executor._repeats
        assert (own.nbytes > 0) == bool(by_kernels and waiting_bytes > 0 and repeats_bytes)
        assert own.nbytes <= repeats_bytes
        return [own for sequence in sequences for own in sequence.logits]

    apart = logits(-1, 0)  # each kernel when it is called
    for ways in ((4 << 10, 0), (16 << 20, 0), (16 << 20, 1 << 20), (16 << 20, 12 << 10)):
        assert all(torch.equal(one, other) for one, other in zip(logits(*ways), apart, strict=True))
