"""Every type of PEFT's that is merged: what it changes is shared where it can be, and its logits are PEFT's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from blockc.compiler import compile_deployment
from blockc.diag import Diagnostics
from blockc.fine_tunes import MERGED, PEFT_TYPES, REFUSED, SERVED, render_table
from blockc.tune.kinds import KINDS
from blockc.verify import verify
from blockc.zoo import Zoo
from tests.support.adapters import configure
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.tiny_models import save_model

# What a type's change of a matrix is, exactly: a term beside the shared matrix, or a matrix of its own.
FORMS = {
    **dict.fromkeys(("ADALORA", "DEFT", "DELORA", "GRALORA", "HRA", "LOHA", "MISS", "PEANUT", "PSOFT", "PVERA",
                     "TINYLORA", "UNILORA", "VBLORA"), "low_rank@linear"),
    **dict.fromkeys(("SHIRA", "WAVEFT"), "sparse@linear"),
}  # fmt: skip
_QUICK = ("LOHA", "OFT", "SHIRA")
_SIZES = {
    "r": 4, "total_step": 10, "num_vectors": 16, "vector_length": 16, "n_frequency": 50, "block_size": 16,
    "oft_block_size": 8, "boft_block_size": 8,
}  # fmt: skip


def save(base: Path, root: Path, name: str) -> Path:
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name)]
    fields = kind.__dataclass_fields__
    options: dict[str, Any] = {key: value for key, value in _SIZES.items() if key in fields}
    if name == "OFT":
        del options["r"]
    config = kind(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    return save_adapter(base, root, config, seed=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in MERGED]
)
def test_a_type_that_is_merged(name: str, base: Path, tmp_path: Path) -> None:
    save(base, base.parent / name, name)
    zoo, tunes = Zoo(tmp_path, create=True), {"tuned": ("base", base.parent / name)}
    plan = compile_deployment(deployment(base, tunes), zoo=zoo, diags=Diagnostics()).plan
    chains = {model: plan.chains[entry.chain or 0] for model, entry in plan.models.items()}
    shares = chains["tuned"].path == chains["base"].path
    assert shares == (name in FORMS)
    assert chains["tuned"].side_kinds == ((FORMS[name],) if shares else ())
    reports = {report.model: report for report in verify(plan, zoo, root=base.parent, prompts=2, output_tokens=3)}
    assert reports["tuned"].passed
    assert reports["tuned"].max_error < 2e-4


def test_every_type_is_served_merged_or_refused() -> None:
    assert {kind.value for kind in peft.PeftType} == set(PEFT_TYPES)
    assert KINDS.keys() | REFUSED.keys() == set(PEFT_TYPES)
    assert KINDS.keys() >= MERGED.keys()
    assert not KINDS.keys() & REFUSED.keys()


@pytest.mark.parametrize("change", ["missing", "strange", "shape", "nan"])
def test_what_peft_would_apply_in_part_is_refused(change: str, base: Path, tmp_path: Path) -> None:
    adapter = save(base, tmp_path / "adapter", "LOHA")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = min(tensors)
    if change == "missing":
        del tensors[name]
    elif change == "strange":
        tensors["base_model.model.model.layers.9.x"] = tensors[name].clone()
    elif change == "shape":
        tensors[name] = tensors[name][:1].clone()
    else:
        tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    _, _, diags = chains_of(deployment(base, {"tuned": ("base", adapter)}), tmp_path / "zoo")
    code = {"missing": "BC211", "strange": "BC204", "shape": "BC202", "nan": "BC203"}[change]
    assert [item.code.id for item in diags] == [code]
    said = " ".join((*(item.message for item in diags), *(note for item in diags for note in item.notes)))
    assert ("layers.9" if change == "strange" else name.removeprefix("base_model.model.")) in said


def test_a_field_that_peft_does_not_know(base: Path, tmp_path: Path) -> None:
    adapter = save(base, tmp_path / "adapter", "LOHA")
    configure(adapter, of_tomorrow=3)
    _, _, diags = chains_of(deployment(base, {"tuned": ("base", adapter)}), tmp_path / "zoo")
    assert [item.code.id for item in diags] == ["BC207"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_is_refused_says_why(name: str, base: Path, tmp_path: Path) -> None:
    adapter = save(base, tmp_path / "adapter", "LOHA")
    configure(adapter, peft_type=name)
    _, _, diags = chains_of(deployment(base, {"tuned": ("base", adapter)}), tmp_path / "zoo")
    (found,) = diags
    assert found.code.id == "BC208"
    assert REFUSED[name] in found.notes[0]


def test_the_page_is_made_of_the_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fine-tunes.md").read_text()
    assert page == render_table()
    assert SERVED.keys() >= KINDS.keys() - MERGED.keys()
