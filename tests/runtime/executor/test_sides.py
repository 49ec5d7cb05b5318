"""Fine-tunes on sides against PEFT: every row its own, in one batch with the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from blockc.plan import SideManifest
from blockc_runtime.executor.slots import tensors_in
from tests.runtime.executor.driver import Driver, Sequence_, new_zoo
from tests.runtime.executor.models import llama_spec, make_llama
from tests.runtime.executor.plans import PlanBuilder, Term

HEAD = 7  # the occurrence of the head: embedding, then attention and MLP of three layers
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_lora(seed: int, *, rank: int, targets: tuple[str, ...], dtype: torch.dtype = torch.float32) -> Any:
    """The base of `make_llama` with a LoRA whose effect is well above rounding."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets))
    tuned = get_peft_model(make_llama(), config)
    made = torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=made) * 0.1
    return tuned.to(dtype).eval()


def terms_of(tuned: Any) -> tuple[Term, ...]:
    """Its sides: occurrence 0 is the embedding, then attention and MLP of each layer."""
    terms = []
    for name, module in tuned.named_modules():
        if not hasattr(module, "lora_A") or not hasattr(module, "scaling"):
            continue
        layer, part, projection = name.split(".")[-3:]
        terms.append(
            Term(
                occurrence=HEAD if projection == "lm_head" else 2 * int(layer) + (1 if part == "self_attn" else 2),
                site="lm_head" if projection == "lm_head" else f"{part}.{projection}",
                a=module.lora_A["default"].weight.data,
                b=module.lora_B["default"].weight.data,
                scale=module.scaling["default"],
            )
        )
    return tuple(terms)


ADAPTERS: list[dict[str, Any]] = [
    {"rank": 4, "targets": ALL},
    {"rank": 8, "targets": ALL},
    {"rank": 16, "targets": ALL},
    {"rank": 8, "targets": ("q_proj", "v_proj")},
    {"rank": 3, "targets": ("down_proj",)},
    {"rank": 8, "targets": ("lm_head", "k_proj")},
]


@pytest.fixture(scope="module")
def tuned() -> list[Any]:
    return [make_lora(seed, **adapter) for seed, adapter in enumerate(ADAPTERS)]


@pytest.fixture
def driver(tmp_path: Path, tuned: list[Any]) -> Driver:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"), pages=200)
    sides = ((), *(terms_of(one) for one in tuned))
    builder.add(llama_spec(make_llama(), cuts=(1, 4)), sides=sides)
    return Driver(builder.build(), builder.zoo)


def check(sequence: Sequence_, prompt: list[int], tuned: list[Any]) -> None:
    model = make_llama() if not sequence.chain else tuned[sequence.chain - 1]
    with torch.no_grad():
        wanted = model(torch.tensor([sequence.tokens])).logits[0, len(prompt) - 1 : -1]
    torch.testing.assert_close(torch.stack(sequence.logits), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chunk", [2, 100])
def test_a_batch_of_all_equals_each_through_peft(driver: Driver, tuned: list[Any], chunk: int) -> None:
    chains = [3, 0, 5, 1, 1, 6, 2, 4, 3, 0, 6]
    prompts = [[7, 8, 9, 10, 11][: 1 + i % 5] for i in range(len(chains))]
    sequences = [driver.start(*pair) for pair in zip(chains, prompts, strict=True)]
    driver.generate(sequences, 4, chunk=chunk)
    for sequence, prompt in zip(sequences, prompts, strict=True):
        check(sequence, prompt, tuned)


def test_all_tensors_of_a_bank_are_found(driver: Driver) -> None:
    """Those whose memory has to last until the steps are done with them."""
    model = driver.executor._model
    assert model is not None
    banks = [bank for segment in model.segments for bank in segment.banks]
    assert banks
    for bank in banks:
        held = {id(tensor): tensor.nbytes for own in bank.weights.values() for tensor in tensors_in(own)}
        assert sum(held.values()) == bank.nbytes > 0


def test_swapped_adapters_are_caught(driver: Driver, tuned: list[Any]) -> None:
    sequence = driver.start(1, [3, 4])
    driver.generate([sequence], 2)
    sequence.chain = 2
    with pytest.raises(AssertionError, match="not close"):
        check(sequence, [3, 4], tuned)


def test_a_stack_of_fine_tunes_is_the_sum_of_its_terms(tmp_path: Path, tuned: list[Any]) -> None:
    terms = terms_of(tuned[0]) + terms_of(tuned[1])
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama()), sides=(terms,))
    driver = Driver(builder.build(), builder.zoo)
    sequence = driver.start(0, [5, 6, 7])
    driver.generate([sequence], 1)
    merged = make_llama()
    with torch.no_grad():
        for term in terms:
            layer = merged.model.layers[(term.occurrence - 1) // 2]
            layer.get_submodule(term.site).weight += term.scale * term.b @ term.a
        wanted = merged(torch.tensor([[5, 6, 7]])).logits[0, -1]
    torch.testing.assert_close(sequence.logits[0], wanted, rtol=1e-5, atol=2e-4)


def test_bfloat16(tmp_path: Path) -> None:
    exact = make_lora(1, rank=8, targets=ALL)
    alone = make_lora(1, rank=8, targets=ALL, dtype=torch.bfloat16)
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama(dtype=torch.bfloat16)), sides=((), terms_of(alone)))
    driver = Driver(builder.build(), builder.zoo)
    prompt = list(range(1, 20))
    sequence, base = driver.start(1, prompt), driver.start(0, prompt)
    driver.generate([sequence, base], 1, chunk=6)
    with torch.no_grad():
        wanted, theirs = (m(torch.tensor([prompt])).logits[0, -1].float() for m in (exact, alone))
    assert (sequence.logits[0] - wanted).norm() <= 1.5 * (theirs - wanted).norm()
    assert (base.logits[0] - wanted).norm() > 5 * (theirs - wanted).norm()


def test_a_fine_tune_that_fails_to_load_disables_its_own_chain(tmp_path: Path, tuned: list[Any]) -> None:
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama()), sides=((), terms_of(tuned[0]), terms_of(tuned[1])))
    manifest = SideManifest.model_validate_json(builder.zoo.blob(builder.chains[1].sides or ""))
    wrong = manifest.sides[0].model_copy(update={"occurrence": 99})
    broken = manifest.model_copy(update={"sides": (wrong,)}).model_dump_json().encode()
    builder.chains[1] = builder.chains[1].model_copy(update={"sides": builder.zoo.put_blob(broken)})
    driver = Driver(builder.build(), builder.zoo)
    assert list(driver.executor.disabled) == [1]
    rows = [driver.row(driver.start(chain, [1]), 1, samples=1) for chain in (0, 1, 2)]
    results = driver.step(rows)
    assert [result.fault is None for result in results] == [True, False, True]


def test_values_that_are_not_finite_disable_their_chain(tmp_path: Path, tuned: list[Any]) -> None:
    terms = terms_of(tuned[0])
    spoiled = Term(
        occurrence=terms[0].occurrence,
        site=terms[0].site,
        a=torch.full_like(terms[0].a, float("nan")),
        b=terms[0].b,
        scale=1.0,
    )
    builder = PlanBuilder(new_zoo(tmp_path / "zoo"))
    builder.add(llama_spec(make_llama()), sides=((), (spoiled,), terms))
    driver = Driver(builder.build(), builder.zoo)
    assert "not finite" in driver.executor.disabled[1]
