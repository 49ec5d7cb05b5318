"""Checkpoints whose matrices are integers of somebody else's making."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockc.compiler import Compiled, compile_deployment
from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir import QuantizedRef
from blockc.tune.stored import read_tensor
from blockc.verify import failed, verify
from blockc.zoo import Zoo
from tests.support.adapters import save_lora
from tests.support.coded import save_awq, save_packed
from tests.support.deployments import deployment
from tests.support.tiny_models import save_model

SAVERS: dict[str, Callable[[Path, Path], dict[str, torch.Tensor]]] = {
    "awq": save_awq,
    "packed": save_packed,
    "packed with zeros": lambda plain, root: save_packed(plain, root, symmetric=False),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_model("llama", root / "plain")
    save_lora(root / "plain", root / "lora", seed=3)
    return root


def compiled(root: Path, zoo: Path, **settings: Any) -> Compiled:
    diags = Diagnostics()
    tunes = {"lora": ("base", root / "lora")} if (root / "lora").is_dir() else {}
    return compile_deployment(deployment(root / "base", tunes, **settings), zoo=Zoo(zoo, create=True), diags=diags)


@pytest.mark.parametrize("kind", ["awq", "packed", "packed with zeros"])
def test_integers_of_the_files_are_served(kind: str, plain: Path, tmp_path: Path) -> None:
    """Verified against transformers: its own loading, or for AWQ a model of what the words stand for."""
    dense = SAVERS[kind](plain / "plain", tmp_path / "base")
    shutil.copytree(plain / "lora", tmp_path / "lora")
    made = compiled(tmp_path, tmp_path / "zoo")
    entry = made.plan.models["base"].quantization
    assert entry is not None
    assert (entry.bits, entry.group) == (4, 32)
    assert entry.error < 1e-6
    path = made.plan.paths[made.plan.chains[made.plan.models["base"].chain].path]
    kept = 0
    assert made.zoo is not None
    for digest, prefix in zip(path.blocks, path.prefixes, strict=True):
        for name, ref in made.plan.blocks[digest].tensors.items():
            if isinstance(ref, QuantizedRef):
                torch.testing.assert_close(read_tensor(made.zoo, ref), dense[prefix + name], rtol=1e-5, atol=1e-6)
                kept += 1
    assert kept == len(dense)
    reports = verify(made.plan, made.zoo, root=tmp_path, prompts=3, output_tokens=4)
    assert not failed(reports)
    for report in reports:
        assert report.original_error is not None
        assert report.original_error < 1e-3


def test_bfloat16_rounds_scales_and_says_what_that_loses(plain: Path, tmp_path: Path) -> None:
    save_awq(plain / "plain", tmp_path / "base")
    made = compiled(tmp_path, tmp_path / "zoo", dtype="bfloat16")
    assert 0 < made.plan.models["base"].quantization.error < 0.01


def refused(root: Path, tmp_path: Path) -> dict[str, str]:
    with pytest.raises(DiagnosticError) as caught:
        compiled(root, tmp_path / "zoo")
    return {item.code.id: f"{item.message} {item.notes} {item.help}" for item in caught.value.diagnostics.items}


SETTINGS = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "quant_method = gptq: nothing here decodes it"),
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
    "gemv": ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version = gemv"),
    "three bits": ({"quant_method": "awq", "bits": 3}, "only 4 bits"),
    "no object": ("awq", "no object"),
    "activations": (
        {
            "quant_method": "compressed-tensors", "format": "int-quantized",
            "config_groups": {"g": {
                "targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
            }},
        },
        "it rounds activations",
    ),
    "floats": (
        {
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
        },
        "only integers",
    ),
    "unknown": ({"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": 3}}}, "compressed-tensors: "),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_not_understood_in_full_is_refused_by_name(name: str, plain: Path, tmp_path: Path) -> None:
    settings, reason = SETTINGS[name]
    save_awq(plain / "plain", tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    found = refused(tmp_path, tmp_path)
    assert found.keys() == {"BC209"}
    assert reason in found["BC209"]


def rewritten(root: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(root / "model.safetensors")
    change(state)
    save_file(state, root / "model.safetensors", metadata={"format": "pt"})


ONE = "model.layers.1.mlp.up_proj."
Change = Callable[[dict[str, torch.Tensor]], Any]


def put(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda state: state.update({f"{ONE}{part}": change(state[f"{ONE}{part}"]).clone()})


def shorter(state: dict[str, torch.Tensor]) -> None:
    """Half as many columns, in all parts."""
    for part in ("qweight", "scales", "qzeros"):
        value = state[f"{ONE}{part}"]
        state[f"{ONE}{part}"] = value[: len(value) // 2].clone()


DAMAGES: dict[str, tuple[str, Change, str]] = {
    "no scales": ("awq", lambda state: state.pop(f"{ONE}scales"), "BC211"),
    "scales of other groups": ("awq", put("scales", lambda scales: scales[:1]), "BC202"),
    "scales of other outputs": ("awq", put("scales", lambda scales: scales[:, :8]), "BC202"),
    "codes that are floats": ("awq", put("qweight", lambda codes: codes.float()), "BC202"),
    "scales that are no numbers": ("awq", put("scales", lambda scales: scales * float("nan")), "BC203"),
    "another matrix": ("awq", shorter, "BC202"),
    "a shape that lies": ("packed", put("weight_shape", lambda _: torch.tensor([96, 640000])), "BC202"),
    "no shape": ("packed", lambda state: state.pop(f"{ONE}weight_shape"), "BC211"),
    "no zeros": ("packed with zeros", lambda state: state.pop(f"{ONE}weight_zero_point"), "BC202"),
    "zeros too few": ("packed with zeros", put("weight_zero_point", lambda zeros: zeros[:2]), "BC202"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_parts_that_do_not_fit_are_refused(name: str, plain: Path, tmp_path: Path) -> None:
    kind, change, code = DAMAGES[name]
    SAVERS[kind](plain / "plain", tmp_path / "base")
    rewritten(tmp_path / "base", change)
    found = refused(tmp_path, tmp_path)
    assert found.keys() == {code}
    assert "up_proj" in found[code]
