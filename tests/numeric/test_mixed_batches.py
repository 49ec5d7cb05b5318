"""One batch of everything, compared with each model run alone; and comparisons that must fail do fail.

Base, several LoRAs, a stacked one, and two full fine-tunes share steps, prompts of different lengths, chunked prefill.
"""

from __future__ import annotations

import random

import pytest
import torch

from blockc.plan import SideManifest
from blockc.verify.served import Question, serve_greedily
from blockc.verify.verify import verify
from tests.support.adapters import save_lora
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_full
from tests.support.serving import compiled
from tests.support.tiny_models import save_model

MODELS = ("base", "all", "qv", "stacked", "top", "whole")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    """Base, two LoRAs, one stacked on the first, a checkpoint with its top layer changed, one with all changed."""
    root = tmp_path_factory.mktemp(request.param)
    base = save_model(request.param, root / "base")
    gpt2 = request.param == "gpt2"
    everything = {"target_modules": ["c_attn", "c_fc", "c_proj"], "fan_in_fan_out": True} if gpt2 else {}
    some = {"target_modules": ["c_attn"], "fan_in_fan_out": True} if gpt2 else {"target_modules": ["q_proj", "v_proj"]}
    save_lora(base, root / "all", seed=1, **everything)
    save_lora(base, root / "qv", seed=2, r=12, use_rslora=True, **some)
    save_lora(base, root / "stacked", seed=3, **some)
    save_full(base, root / "top", only="h.3." if gpt2 else "layers.3.")
    save_full(base, root / "whole", only="")
    return root


def _deployment(root, dtype="float32"):
    fine_tunes = {
        "all": ("base", root / "all"),
        "qv": ("base", root / "qv"),
        "stacked": ("all", root / "stacked"),
        "top": ("base", root / "top"),
        "whole": ("base", root / "whole"),
    }
    return deployment(root / "base", fine_tunes, dtype=dtype, apps={"acme": {name: name for name in MODELS}})


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    return compiled(_deployment(folder), tmp_path_factory.mktemp("zoo") / "zoo")


def test_float32_tokens_and_logits_equal_each_model_alone(served, folder):
    reports = verify(served.plan, served.zoo, root=folder, prompts=9, output_tokens=32)
    assert [report.model for report in reports] == list(MODELS)
    for report in reports:
        assert report.tokens == 9 * 32
        assert report.agreed + report.near_ties == report.tokens, report
        assert report.near_ties <= 2, report
        assert report.max_error < 2e-4, report


def test_bfloat16_logits_are_as_close_as_rounding_allows(folder, tmp_path):
    served = compiled(_deployment(folder, "bfloat16"), tmp_path / "zoo")
    for report in verify(served.plan, served.zoo, root=folder, prompts=5, output_tokens=6):
        assert report.max_error <= report.bound, report


def test_logits_do_not_change_with_the_neighbours(served):
    rng = random.Random(5)
    questions = [
        Question(app=app, tokens=tuple(rng.randrange(3, 128) for _ in range(rng.randint(1, 60))), output_tokens=8)
        for app in range(len(MODELS))
        for _ in range(3)
    ]
    together = serve_greedily(served.plan, served.zoo, questions)
    for question, answer in zip(questions, together, strict=True):
        (alone,) = serve_greedily(served.plan, served.zoo, [question])
        assert alone.tokens == answer.tokens
        assert torch.allclose(alone.logits, answer.logits, atol=1e-4)


def test_shared_layers_are_stored_once(served, folder):
    baselines = served.plan.baselines
    assert baselines.ours_bytes < baselines.ps_bytes < baselines.pm_bytes


class TestNegativeControls:
    """Each of these mistakes must be caught by the comparison that the tests above rely on."""

    def _failed(self, plan, served, folder):
        reports = verify(plan, served.zoo, root=folder, prompts=2, output_tokens=4)
        return {report.model for report in reports if not report.passed}

    def test_the_plan_itself_passes(self, served, folder):
        assert self._failed(served.plan, served, folder) == set()

    def test_swapped_adapters(self, served, folder):
        plan = served.plan
        one, other = (next(app.chain for app in plan.apps if app.model == name) for name in ("all", "qv"))
        chains = list(plan.chains)
        chains[one], chains[other] = (
            chains[one].model_copy(update={"sides": chains[other].sides}),
            chains[other].model_copy(update={"sides": chains[one].sides}),
        )
        assert self._failed(plan.model_copy(update={"chains": tuple(chains)}), served, folder) == {"all", "qv"}

    def test_a_dropped_alpha(self, served, folder):
        assert self._failed(self._edited(served, lambda term: {"scalars": {"scale": (1.0).hex()}}), served, folder) >= {
            "all"
        }

    def test_a_missing_side(self, served, folder):
        plan = self._with_manifest(served, lambda manifest: manifest.sides[1:])
        assert self._failed(plan, served, folder) == {"all"}

    def test_a_missing_layer(self, served, folder):
        """The full fine-tune answered with the base's top layer in place of its own."""
        plan = served.plan
        base = next(app.chain for app in plan.apps if app.model == "base")
        apps = tuple(app.model_copy(update={"chain": base}) if app.model == "top" else app for app in plan.apps)
        assert self._failed(plan.model_copy(update={"apps": apps}), served, folder) == {"top"}

    def _edited(self, served, change):
        def sides(manifest):
            return tuple(
                side.model_copy(update={"terms": tuple(term.model_copy(update=change(term)) for term in side.terms)})
                for side in manifest.sides
            )

        return self._with_manifest(served, sides)

    def _with_manifest(self, served, change):
        """The plan with other sides for the model `all`."""
        plan = served.plan
        index = next(app.chain for app in plan.apps if app.model == "all")
        manifest = SideManifest.model_validate_json(served.zoo.blob(plan.chains[index].sides))
        digest = served.zoo.put_blob(SideManifest(sides=change(manifest)).model_dump_json().encode())
        chains = list(plan.chains)
        chains[index] = chains[index].model_copy(update={"sides": digest})
        return plan.model_copy(update={"chains": tuple(chains)})
