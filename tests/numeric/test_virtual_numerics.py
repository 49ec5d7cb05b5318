"""Prefix tuning, prompt tuning and p-tuning against PEFT run alone, in one mixed batch with the base."""

from __future__ import annotations

import pytest
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

from blockc.diag import DiagnosticError
from blockc.plan import SideManifest
from blockc.verify.served import Question, serve_greedily
from blockc.verify.verify import verify
from tests.support.adapters import save_lora
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.serving import compiled
from tests.support.tiny_models import save_model

MODELS = ("base", "prefix", "projected", "prompt", "encoded", "qv")
LONG = 21


def _folder(name, root):
    """A base and one fine-tune of each kind."""
    base = save_model(name, root / "base")
    common = {"task_type": "CAUSAL_LM"}
    save_adapter(base, root / "prefix", PrefixTuningConfig(num_virtual_tokens=LONG, **common), seed=1)
    projected = PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16, **common)
    save_adapter(base, root / "projected", projected, seed=2)
    save_adapter(base, root / "prompt", PromptTuningConfig(num_virtual_tokens=9, **common), seed=3)
    encoded = PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=16, **common)
    save_adapter(base, root / "encoded", encoded, seed=4)
    targets = ["c_attn"] if name == "gpt2" else ["q_proj", "v_proj"]
    save_lora(base, root / "qv", seed=5, target_modules=targets, fan_in_fan_out=name == "gpt2")
    return root


def _served(folder, zoo, **settings):
    fine_tunes = {name: ("base", folder / name) for name in MODELS[1:]}
    fine_tunes |= {
        "qv_on_prefix": ("prefix", folder / "qv"),
        "prefix_on_qv": ("qv", folder / "prefix"),
        "prompt_on_qv": ("qv", folder / "prompt"),
    }
    return compiled(deployment(folder / "base", fine_tunes, max_model_len=256, **settings), zoo)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _folder("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    return _served(folder, tmp_path_factory.mktemp("zoo") / "zoo")


# Grouped heads, learned positions, a window; biases.
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_float32_tokens_and_logits_equal_each_model_alone(name, tmp_path):
    folder = _folder(name, tmp_path)
    served = _served(folder, tmp_path / "zoo")
    reports = verify(served.plan, served.zoo, root=folder, prompts=6, output_tokens=8)
    assert {report.model for report in reports} == {*MODELS, "qv_on_prefix", "prefix_on_qv", "prompt_on_qv"}
    for report in reports:
        assert report.agreed + report.near_ties == report.tokens == 6 * 8, report
        assert report.near_ties <= 2, report
        assert report.max_error < 2e-4, report


def test_bfloat16_logits_are_as_close_as_rounding_allows(folder, tmp_path):
    served = _served(folder, tmp_path / "zoo", dtype="bfloat16")
    for report in verify(served.plan, served.zoo, root=folder, prompts=3, output_tokens=4):
        assert report.max_error <= report.bound, report


def test_the_order_of_a_prefix_and_a_lora_makes_no_difference(served):
    chains = {app.model: served.plan.chains[app.chain] for app in served.plan.apps}
    assert chains["qv_on_prefix"].virtual_tokens == chains["prefix_on_qv"].virtual_tokens
    assert chains["qv_on_prefix"].sides == chains["prefix_on_qv"].sides


def test_a_token_that_is_drawn_is_in_the_vocabulary(served):
    plan = served.plan
    app = next(index for index, app in enumerate(plan.apps) if app.model == "prompt")
    (answer,) = serve_greedily(plan, served.zoo, [Question(app=app, tokens=(5, 6), output_tokens=4)])
    vocabulary = plan.chains[plan.apps[app].chain].vocab_size
    assert min(plan.chains[plan.apps[app].chain].virtual_tokens) > vocabulary
    assert answer.logits.shape[-1] == vocabulary


class TestNegativeControls:
    """Each of these mistakes must be caught by the comparison that the tests above rely on."""

    def _failed(self, plan, served, folder):
        reports = verify(plan, served.zoo, root=folder, prompts=2, output_tokens=3)
        return {report.model for report in reports if not report.passed and "_on_" not in report.model}

    def _changed(self, served, model, **update):
        index = next(app.chain for app in served.plan.apps if app.model == model)
        chains = list(served.plan.chains)
        chains[index] = chains[index].model_copy(update=update)
        return served.plan.model_copy(update={"chains": tuple(chains)})

    def test_the_plan_itself_passes(self, served, folder):
        assert self._failed(served.plan, served, folder) == set()

    @pytest.mark.parametrize("model", ["prefix", "prompt"])
    def test_dropped_virtual_tokens(self, model, served, folder):
        assert self._failed(self._changed(served, model, virtual_tokens=()), served, folder) == {model}

    def test_positions_off_by_one(self, served, folder):
        plan = self._changed(served, "prefix", virtual_tokens=(0,) * (LONG + 1))
        assert self._failed(plan, served, folder) == {"prefix"}

    def test_keys_and_values_swapped(self, served, folder):
        index = next(app.chain for app in served.plan.apps if app.model == "projected")
        manifest = SideManifest.model_validate_json(served.zoo.blob(served.plan.chains[index].sides))

        def swapped(one):
            return one.model_copy(update={"tensors": {"keys": one.tensors["values"], "values": one.tensors["keys"]}})

        sides = tuple(side.model_copy(update={"terms": tuple(map(swapped, side.terms))}) for side in manifest.sides)
        blob = served.zoo.put_blob(manifest.model_copy(update={"sides": sides}).model_dump_json().encode())
        assert self._failed(self._changed(served, "projected", sides=blob), served, folder) == {"projected"}

    def test_swapped_prompts(self, served, folder):
        chains = {app.model: served.plan.chains[app.chain] for app in served.plan.apps}
        plan = self._changed(served, "prefix", sides=chains["projected"].sides)
        assert self._failed(plan, served, folder) == {"prefix"}

    @pytest.mark.parametrize("update", [{"sides": None}, {"virtual_tokens": (-1,)}, {"virtual_tokens": (128,)}])
    def test_a_prompt_whose_rows_are_missing_is_not_served(self, update, served):
        plan = self._changed(served, "prompt", **update)
        with pytest.raises(DiagnosticError, match="no rows for its virtual tokens"):
            serve_greedily(plan, served.zoo, [])
