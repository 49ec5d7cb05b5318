"""The executor against the same models run alone through transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from blockc_runtime.request import Sampling
from tests.runtime.executor.driver import Driver, Sequence_, new_zoo
from tests.runtime.executor.models import gpt2_spec, llama_spec, make_gpt2, make_llama
from tests.runtime.executor.plans import ModelSpec, PlanBuilder

MODELS = [(make_llama, llama_spec), (make_gpt2, gpt2_spec)]
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [11, 12, 13]]


def reference_logits(model: Any, sequence: Sequence_, prompt: list[int]) -> torch.Tensor:
    """Logits of the model alone at every position from which ``sequence`` drew a token."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([sequence.tokens])).logits[0].float()
    return logits[len(prompt) - 1 : -1]


def driver_for(path: Path, spec: ModelSpec, **options: int) -> Driver:
    builder = PlanBuilder(new_zoo(path / "zoo"), **options)
    builder.add(spec)
    return Driver(builder.build(), builder.zoo)


@pytest.mark.parametrize(("make", "to_spec"), MODELS)
@pytest.mark.parametrize("cuts", [(), (1, 3)])
def test_equals_the_model_alone(
    tmp_path: Path, make: Callable[[], Any], to_spec: Callable[..., ModelSpec], cuts: tuple[int, ...]
) -> None:
    model = make()
    driver = driver_for(tmp_path, to_spec(model, cuts=cuts))
    sequences = [driver.start(0, prompt) for prompt in PROMPTS]
    driver.generate(sequences, 6)
    for sequence, prompt in zip(sequences, PROMPTS, strict=True):
        wanted = reference_logits(model, sequence, prompt)
        assert sequence.tokens[len(prompt) :] == wanted.argmax(-1).tolist()
        torch.testing.assert_close(torch.stack(sequence.logits), wanted, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(("make", "to_spec"), MODELS)
def test_bfloat16_logits(tmp_path: Path, make: Callable[..., Any], to_spec: Callable[..., ModelSpec]) -> None:
    exact = make()
    model = make(dtype=torch.bfloat16)
    driver = driver_for(tmp_path, to_spec(model))
    prompt = list(range(1, 30))
    sequence = driver.start(0, prompt)
    driver.generate([sequence], 1, chunk=10)
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        wanted, alone = (m(tokens).logits[0, -1].float() for m in (exact, model))
    ours, theirs = (sequence.logits[0] - wanted).norm(), (alone - wanted).norm()
    assert ours <= 1.5 * theirs  # bfloat16 is coarse; ours is no coarser than transformers'


@pytest.mark.parametrize("chunk", [1, 3, 5, 8])
def test_chunked_prefill_is_the_whole_prefill(tmp_path: Path, chunk: int) -> None:
    driver = driver_for(tmp_path, llama_spec(make_llama()))
    prompt = list(range(3, 20))
    whole, parts = driver.start(0, prompt), driver.start(0, prompt)
    driver.generate([whole], 2)
    driver.generate([parts], 2, chunk=chunk)
    assert parts.tokens == whole.tokens
    torch.testing.assert_close(torch.stack(parts.logits), torch.stack(whole.logits), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("window", [3, 6])
def test_window(tmp_path: Path, window: int) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    model = make_llama()
    config = MistralConfig(
        **{
            key: value
            for key, value in model.config.to_dict().items()
            if key in MistralConfig().to_dict() and key not in ("architectures", "model_type")
        }
        | {"sliding_window": window}
    )
    mistral = MistralForCausalLM(config).eval()
    mistral.load_state_dict(model.state_dict())
    driver = driver_for(tmp_path, llama_spec(mistral, window=window))
    prompt = list(range(3, 20))
    whole, parts = driver.start(0, prompt), driver.start(0, prompt)
    driver.generate([whole], 4)
    driver.generate([parts], 4, chunk=5)
    for sequence in (whole, parts):
        wanted = reference_logits(mistral, sequence, prompt)
        torch.testing.assert_close(torch.stack(sequence.logits), wanted, rtol=1e-5, atol=5e-5)


def test_pages_that_a_window_has_passed_may_be_gone(tmp_path: Path) -> None:
    driver = driver_for(tmp_path, llama_spec(make_llama(), window=6))
    kept, lost = driver.start(0, range(3, 20)), driver.start(0, range(3, 20))
    driver.advance([(kept, 16), (lost, 16)])
    lost.pages[0][:2] = [None, None]  # positions 0 to 7; position 16 sees 11 and on
    driver.advance([(kept, 1), (lost, 1)])
    torch.testing.assert_close(kept.logits[0], lost.logits[0])


def test_a_result_does_not_depend_on_neighbours(tmp_path: Path) -> None:
    driver = driver_for(tmp_path, llama_spec(make_llama()), pages=200)
    alone = driver.start(0, [5, 6, 7])
    driver.generate([alone], 5)
    crowded = driver.start(0, [5, 6, 7])
    others = [driver.start(0, list(range(1, n))) for n in (2, 9, 40, 90)]
    driver.generate([others[0], crowded, *others[1:]], 5, chunk=7)
    assert crowded.tokens == alone.tokens
    torch.testing.assert_close(torch.stack(crowded.logits), torch.stack(alone.logits), rtol=1e-5, atol=5e-5)


def test_all_rows_logits_for_verification(tmp_path: Path) -> None:
    model = make_llama()
    driver = driver_for(tmp_path, llama_spec(model))
    first, second = driver.start(0, range(1, 12)), driver.start(0, range(20, 24))
    driver.step([driver.row(first, 11, samples=11), driver.row(second, 4, samples=2)])
    with torch.no_grad():
        wanted = model(torch.tensor([first.tokens])).logits[0]
    torch.testing.assert_close(driver.tapped[0], wanted, rtol=1e-5, atol=5e-5)
    assert driver.tapped[1].shape == (2, 97)


def test_models_of_several_bases_run_in_one_step(tmp_path: Path) -> None:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    models = [make_llama(0), make_gpt2(1), make_llama(2, layers=2)]
    builder.add(llama_spec(models[0]))
    builder.add(gpt2_spec(models[1]))
    builder.add(llama_spec(models[2], cuts=(3,)))
    driver = Driver(builder.build(), builder.zoo)
    sequences = [driver.start(chain, [3, 4, 5]) for chain in (2, 0, 1, 0)]
    driver.generate(sequences, 4, chunk=2)
    for sequence in sequences:
        wanted = reference_logits(models[sequence.chain], sequence, [3, 4, 5])
        torch.testing.assert_close(torch.stack(sequence.logits), wanted, rtol=1e-5, atol=5e-5)


def test_chains_that_part_and_meet_in_segments(tmp_path: Path) -> None:
    """Two chains share their first blocks and end in heads of their own."""
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    base, tuned = make_llama(0), make_llama(0)
    with torch.no_grad():
        tuned.lm_head.weight.mul_(-1)
    builder.add(llama_spec(base, cuts=(7,)))
    builder.add(llama_spec(tuned, cuts=(7,)))
    builder.segments[0] = builder.segments[0].model_copy(update={"chains": (0, 1)})
    del builder.segments[2]
    group = builder.chains[0].kv
    builder.chains[1] = builder.chains[1].model_copy(update={"segments": (0, 2), "kv": group})
    driver = Driver(builder.build(), builder.zoo)
    one, two = driver.start(0, [3, 4, 5]), driver.start(1, [3, 4, 5])
    other = driver.start(0, [8])
    driver.advance([(two, 3), (one, 3), (other, 1)])
    torch.testing.assert_close(one.logits[0], -two.logits[0], rtol=1e-5, atol=5e-5)
    assert driver.executor.counts.launches == 3


def test_base_weights_are_read_once_however_many_chains(tmp_path: Path) -> None:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama()), sides=((),) * 5)
    driver = Driver(builder.build(), builder.zoo)
    counts = []
    for chains in ([0], [0, 1, 2, 3, 4]):
        driver.advance([(driver.start(chain, [1]), 1) for chain in chains])
        counts.append(driver.executor.counts.base_reads)
    assert counts[0] == counts[1]


def test_logprobs(tmp_path: Path) -> None:
    driver = driver_for(tmp_path, llama_spec(make_llama()))
    asked = driver.row(driver.start(0, [3, 4]), 2, samples=1, sampling=Sampling(logprobs=3))
    plain = driver.row(driver.start(0, [3, 4]), 2, samples=1)
    first, second = driver.step([asked, plain])
    assert second.logprobs == ()
    assert first.tokens == second.tokens
    wanted = driver.tapped[0].log_softmax(-1)[0].topk(3)
    assert [token for token, _ in first.logprobs[0].top] == wanted.indices.tolist()
    assert first.logprobs[0].logprob == pytest.approx(wanted.values[0].item())


def test_a_seeded_draw_is_the_same_alone_and_in_company(tmp_path: Path) -> None:
    driver = driver_for(tmp_path, llama_spec(make_llama()))
    warm = Sampling(temperature=1.5, seed=7)
    alone = driver.step([driver.row(driver.start(0, [3, 4]), 2, samples=2, sampling=warm)])
    company = driver.row(driver.start(0, [9]), 1, samples=1, sampling=Sampling(temperature=0.7, top_k=5))
    together = driver.step([company, driver.row(driver.start(0, [3, 4]), 2, samples=2, sampling=warm)])
    assert together[1] == alone[0]
    assert len(alone[0].tokens) == 2


@pytest.mark.parametrize(("heads", "said"), [(16, ("its heads have 3 values, an odd number",)), (3, ())])
def test_caches_that_kernels_of_a_device_do_not_take_are_told(
    tmp_path: Path, heads: int, said: tuple[str, ...]
) -> None:
    builder = PlanBuilder(new_zoo(tmp_path))
    builder.add(gpt2_spec(make_gpt2(heads=heads)))
    assert Driver(builder.build(), builder.zoo).executor.kernel_problems == said
