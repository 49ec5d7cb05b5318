"""Full fine-tunes on shared blocks: exactly where nothing is lost, else within the policy's budgets and bounds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from blockc.compiler import Compiled, compile_deployment
from blockc.diag import DiagnosticError, Diagnostics
from blockc.evaluate import compare, logits
from blockc.plan import EvidenceManifest
from blockc.spec.deployment import LocalSource, Policy, Sharing
from blockc.verify import failed, verify
from blockc.zoo import Zoo
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.tiny_models import save_model

Change = Callable[[str, torch.Tensor], torch.Tensor]


def faint(name: str, value: torch.Tensor) -> torch.Tensor:
    return value + 0.005 * torch.randn_like(value)


def tuned(base: Path, root: Path, change: Change) -> Path:
    shutil.copytree(base, root)
    torch.manual_seed(3)
    tensors = {name: change(name, value) for name, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    base = save_model("qwen2", root / "base")
    tuned(base, root / "whole", faint)
    tuned(base, root / "strong", lambda name, value: value + 0.1 * torch.randn_like(value))
    tuned(base, root / "vectors", lambda name, value: faint(name, value) if value.ndim == 1 else value)
    tuned(base, root / "few", _few_rows)
    save_adapter(root / "whole", root / "adapter", LoraConfig(r=4, target_modules=["q_proj"]))
    (root / "probe.jsonl").write_text("\n".join(str([(7 * i + 3 * j) % 128 for j in range(24)]) for i in range(6)))
    return root


def _few_rows(name: str, value: torch.Tensor) -> torch.Tensor:
    if "embed_tokens" not in name and "lm_head" not in name:
        return value
    changed = value.clone()
    changed[[5, 99]] += 1
    return changed


def compiled(models: Path, names: list[str], share: Sharing, zoo: Zoo) -> tuple[Compiled, Diagnostics]:
    tunes = {name: ("whole" if name == "adapter" else "base", models / name) for name in names}
    policy = Policy(max_rows=16, max_batched_tokens=256, share=share)
    diags = Diagnostics()
    return compile_deployment(deployment(models / "base", tunes, policy=policy), zoo=zoo, diags=diags), diags


def delta(percent: int) -> Sharing:
    return Sharing(mode="delta", max_error=Fraction(percent, 100))


def test_vectors_and_few_rows_cost_no_blocks_and_nothing_is_lost(models: Path, tmp_path: Path) -> None:
    result, _ = compiled(models, ["vectors", "few"], Sharing(), Zoo(tmp_path, create=True))
    plan = result.plan
    base = plan.chains[plan.models["base"].chain or 0]
    for name, codec in (("vectors", "value"), ("few", "rows")):
        sharing, chain = plan.models[name].sharing, plan.chains[plan.models[name].chain or 0]
        assert sharing is not None
        assert (sharing.verdict, sharing.shared, sharing.lost) == ("exact", sharing.differing, 0)
        assert chain.path == base.path
        assert any(kind.startswith(codec) for kind in chain.side_kinds)
        assert sharing.agreement is None
    assert result.zoo is not None
    assert not failed(verify(plan, result.zoo, root=models, prompts=3, output_tokens=4))


def test_by_default_what_changed_as_a_whole_stays_private(models: Path, tmp_path: Path) -> None:
    result, diags = compiled(models, ["whole"], Sharing(), Zoo(tmp_path, create=True))
    assert result.plan.models["whole"].sharing is None
    (warning,) = diags
    assert warning.code.id == "BC301"
    assert "delta(max_error = 15%)" in warning.help


@pytest.mark.parametrize(
    ("percent", "codec", "most_kl"), [(2, "group_int", 1e-5), (15, "group_int", 1e-3), (70, "sign", 0.05)]
)
def test_a_budget_is_kept_and_what_it_does_is_measured(
    percent: int, codec: str, most_kl: float, models: Path, tmp_path: Path
) -> None:
    zoo = Zoo(tmp_path, create=True)
    result, _ = compiled(models, ["whole"], delta(percent), zoo)
    sharing = result.plan.models["whole"].sharing
    assert sharing is not None
    assert sharing.verdict == "delta"
    assert sharing.lost <= percent / 100
    assert sharing.nbytes < sharing.own_bytes / 2
    evidence = EvidenceManifest.model_validate_json(zoo.blob(sharing.tensors))
    matrices = [item for item in evidence.tensors if "weight" in item.parameter and "norm" not in item.parameter]
    assert any(codec in item.codec for item in matrices)
    assert all(item.lost == 0 for item in evidence.tensors if "norm" in item.parameter or "bias" in item.parameter)
    agreement = sharing.agreement
    assert agreement is not None
    assert 0 < agreement.kl_mean < most_kl
    chains, original, _ = chains_of(deployment(models / "base", {"whole": ("base", models / "whole")}), tmp_path / "o")
    texts = [[3, 9, 100, 7], [1, 2]]
    kept = result.models["whole"]
    assert compare(logits(chains["whole"], original, texts), logits(kept, zoo, texts), texts).kl_mean < 4 * most_kl
    assert not failed(verify(result.plan, zoo, root=models, prompts=3, output_tokens=4))


def test_over_the_budget_a_block_stays_private(models: Path, tmp_path: Path) -> None:
    budget = Sharing(mode="delta", max_error=Fraction(1, 10**6))
    result, _ = compiled(models, ["whole"], budget, Zoo(tmp_path, create=True))
    assert result.plan.models["whole"].sharing is None


def test_an_adapter_goes_where_its_parent_goes(models: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path, create=True)
    result, _ = compiled(models, ["whole", "adapter"], delta(2), zoo)
    paths = {name: result.plan.chains[model.chain or 0].path for name, model in result.plan.models.items()}
    assert paths["adapter"] == paths["whole"]
    assert not failed(verify(result.plan, zoo, root=models, prompts=2, output_tokens=3))


class TestApprox:
    def share(self, models: Path, metric: str, percent: Fraction) -> Sharing:
        probe = LocalSource(path=models / "probe.jsonl", written="./probe.jsonl")
        return Sharing(mode="approx", metric=metric, bound=percent, probe=probe)  # type: ignore[arg-type]

    def test_similar_blocks_are_replaced_within_the_bound(self, models: Path, tmp_path: Path) -> None:
        zoo = Zoo(tmp_path, create=True)
        found = {}
        for bound in (Fraction(1, 10**4), Fraction(1, 100), Fraction(1)):
            sharing = compiled(models, ["whole"], self.share(models, "kl", bound), zoo)[0].plan.models["whole"].sharing
            found[bound] = 0 if sharing is None else sharing.shared
            if sharing is not None:
                assert sharing.agreement is not None
                assert sharing.agreement.kl_mean <= bound
                assert sharing.agreement.probe == "./probe.jsonl"
        assert list(found.values()) == sorted(found.values())
        assert found[Fraction(1)] > found[Fraction(1, 10**4)]

    def test_alike_parameters_decide_nothing(self, models: Path, tmp_path: Path) -> None:
        """A model whose blocks are as alike as before but do something else keeps them."""
        result, _ = compiled(
            models, ["strong"], self.share(models, "top1", Fraction(1, 100)), Zoo(tmp_path, create=True)
        )
        sharing = result.plan.models["strong"].sharing
        assert sharing is None or (sharing.agreement is not None and sharing.agreement.top1 >= 0.99)

    @pytest.mark.parametrize(("text", "code"), [(None, "BC201"), ("{", "BC203"), ("[4]", "BC203")])
    def test_a_probe_that_cannot_be_read(self, text: str | None, code: str, models: Path, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        if text is not None:
            path.write_text(text)
        share = replace(self.share(models, "kl", Fraction(1)), probe=LocalSource(path=path, written="./p.jsonl"))
        with pytest.raises(DiagnosticError) as caught:
            compiled(models, ["whole"], share, Zoo(tmp_path / "zoo", create=True))
        assert [item.code.id for item in caught.value.diagnostics] == [code]
        assert "./p.jsonl" in str(caught.value)
