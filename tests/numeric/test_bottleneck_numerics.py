"""Bottleneck adapters against what AdapterHub's library computed (``tests/fixtures/adapterhub``), all in one batch."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from blockc.plan import SideManifest
from blockc.verify.bottleneck import add_bottlenecks
from blockc.verify.served import Question, serve_greedily
from blockc.verify.verify import verify
from blockc_runtime.executor.model import load_model
from tests.support.adapters import save_lora
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.serving import compiled

# What a plan adds to each tensor so that it may be aligned.
_SLACK_BYTES = 512 << 8
FIXTURES = Path(__file__).parent.parent / "fixtures" / "adapterhub"
CASES = sorted(path.parent.name for path in FIXTURES.glob("*-*/adapter.safetensors"))


@cache
def expected() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "expected.safetensors")


def _served(base, cases, tmp_path):
    names = {case.replace("-", "_"): case for case in cases}
    fine_tunes = {name: ("base", FIXTURES / case) for name, case in names.items()}
    return compiled(deployment(FIXTURES / base, fine_tunes, max_model_len=64), tmp_path / "zoo")


def _logits(served, tokens):
    """For each model the logits after each beginning of ``tokens``, everything in one run."""
    questions = [
        Question(app=app, tokens=tokens[: end + 1], output_tokens=1)
        for end in range(len(tokens))
        for app in range(len(served.plan.apps))
    ]
    answers = serve_greedily(served.plan, served.zoo, questions)
    return {
        entry.model: torch.cat([answer.logits for answer, q in zip(answers, questions, strict=True) if q.app == app])
        for app, entry in enumerate(served.plan.apps)
    }


@pytest.mark.parametrize("case", ["llama", "gpt2", "mistral", *CASES])
def test_the_oracle_computes_what_the_library_did(case):
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / case.split("-")[0])
    if "-" in case:
        add_bottlenecks(model, FIXTURES / case)
    with torch.inference_mode():
        assert torch.allclose(model(expected()["tokens"]).logits[0], expected()[case], atol=2e-5)


@pytest.mark.parametrize("base", ["llama", "gpt2", "mistral"])
def test_served_logits_are_the_librarys(base, tmp_path):
    cases = [case for case in CASES if case.startswith(base)]
    served = _served(base, cases, tmp_path)
    assert served.plan.models[cases[0].replace("-", "_")].kind == "bottleneck"
    found = _logits(served, tuple(expected()["tokens"][0].tolist()))
    assert len(found) == len(cases) + 1
    for model, logits in found.items():
        wanted = expected()[base if model == "base" else model.replace("_", "-")]
        assert float((logits - wanted).abs().max()) < 2e-4, model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return _served("llama", ("llama-houlsby", "llama-parallel"), tmp_path_factory.mktemp("control"))


class TestNegativeControls:
    """Each of these mistakes must be caught by the comparison that the tests above rely on."""

    def _failed(self, plan, served):
        return {report.model for report in verify(plan, served.zoo, root=FIXTURES, prompts=2, output_tokens=4)
                if not report.passed}  # fmt: skip

    def _edited(self, served, change):
        """The plan with other terms for `llama_houlsby`."""
        plan = served.plan
        index = next(app.chain for app in plan.apps if app.model == "llama_houlsby")
        manifest = SideManifest.model_validate_json(served.zoo.blob(plan.chains[index].sides))
        sides = tuple(
            side.model_copy(update={"terms": tuple(term.model_copy(update=change(term)) for term in side.terms)})
            for side in manifest.sides
        )
        blob = served.zoo.put_blob(manifest.model_copy(update={"sides": sides}).model_dump_json().encode())
        chains = list(plan.chains)
        chains[index] = chains[index].model_copy(update={"sides": blob})
        return plan.model_copy(update={"chains": tuple(chains)})

    def test_the_plan_itself_passes(self, served):
        assert self._failed(served.plan, served) == set()

    @pytest.mark.parametrize(
        "scalars", [{"activation": "relu"}, {"reads": "sum"}, {"reads": "stream"}, {"scale": (0.5).hex()}]
    )
    def test_another_formula(self, scalars, served):
        plan = self._edited(served, lambda term: {"scalars": {**term.scalars, **scalars}})
        assert self._failed(plan, served) == {"llama_houlsby"}

    def test_a_dropped_bias(self, served):
        plan = self._edited(
            served, lambda term: {"tensors": {role: t for role, t in term.tensors.items() if role != "up_bias"}}
        )
        assert self._failed(plan, served) == {"llama_houlsby"}

    def test_swapped_adapters(self, served):
        plan = served.plan
        one, other = (
            next(a.chain for a in plan.apps if a.model == name) for name in ("llama_houlsby", "llama_parallel")
        )
        chains = list(plan.chains)
        chains[one], chains[other] = (
            chains[one].model_copy(update={"sides": chains[other].sides}),
            chains[other].model_copy(update={"sides": chains[one].sides}),
        )
        assert self._failed(plan.model_copy(update={"chains": tuple(chains)}), served) == {
            "llama_houlsby", "llama_parallel",
        }  # fmt: skip


def test_names_of_the_bare_decoder(tmp_path):
    """Saved from the decoder without its head, tensors lack the first part of their names."""
    copy = shutil.copytree(FIXTURES / "llama-houlsby", tmp_path / "llama-bare")
    tensors = load_file(copy / "adapter.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, copy / "adapter.safetensors")
    tuned = {"whole": ("base", FIXTURES / "llama-houlsby"), "bare": ("base", copy)}
    served = compiled(deployment(FIXTURES / "llama", tuned, max_model_len=64), tmp_path / "zoo")
    assert len(served.plan.chains) == 2


def test_beside_other_kinds_and_stacked_with_them(tmp_path):
    """One batch of a base and six kinds; bottlenecks below and above the others."""
    base = shutil.copytree(FIXTURES / "llama", tmp_path / "llama")
    for case in ("llama-houlsby", "llama-parallel"):
        shutil.copytree(FIXTURES / case, tmp_path / case)
    task = {"task_type": "CAUSAL_LM"}
    save_lora(base, tmp_path / "lora", target_modules=["q_proj", "down_proj"])
    save_adapter(base, tmp_path / "ia3", IA3Config(**task))
    save_adapter(base, tmp_path / "prefix", PrefixTuningConfig(num_virtual_tokens=7, **task))
    save_adapter(base, tmp_path / "prompt", PromptTuningConfig(num_virtual_tokens=3, **task))
    parents = {
        "houlsby": ("base", "llama-houlsby"), "parallel": ("base", "llama-parallel"), "lora": ("base", "lora"),
        "ia3": ("base", "ia3"), "prefix": ("base", "prefix"), "prompt": ("base", "prompt"),
        "houlsby_on_lora": ("lora", "llama-houlsby"), "prefix_on_houlsby": ("houlsby", "prefix"),
        "parallel_on_prompt": ("prompt", "llama-parallel"), "ia3_on_parallel": ("parallel", "ia3"),
    }  # fmt: skip
    fine_tunes = {name: (parent, tmp_path / folder) for name, (parent, folder) in parents.items()}
    served = compiled(deployment(base, fine_tunes, max_model_len=64), tmp_path / "zoo")
    reports = verify(served.plan, served.zoo, root=tmp_path, prompts=4, output_tokens=8)
    assert len(reports) == len(parents) + 1
    for report in reports:
        assert report.passed, report
        assert report.max_error < 2e-4, report
    model = load_model(served.plan, served.zoo, device=torch.device("cpu"))
    planned = served.plan.memory[0].sides_bytes
    assert 0.9 * planned < model.sides_bytes + _SLACK_BYTES
    assert model.sides_bytes <= planned


def test_bfloat16_logits_are_as_close_as_rounding_allows(tmp_path):
    cases = ("llama-houlsby", "llama-channel", "llama-norms", "llama-parallel-both")
    fine_tunes = {case.replace("-", "_"): ("base", FIXTURES / case) for case in cases}
    spec = deployment(FIXTURES / "llama", fine_tunes, max_model_len=64, dtype="bfloat16")
    served = compiled(spec, tmp_path / "zoo")
    for report in verify(served.plan, served.zoo, root=FIXTURES, prompts=3, output_tokens=4):
        assert report.max_error <= report.bound, report
