"""AdapterHub's adapters that would not be applied in full are refused, by code and by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.chains import chains_of
from tests.support.deployments import deployment

FIXTURES = Path(__file__).parent.parent / "fixtures" / "adapterhub"
FILE = "adapter.safetensors"
_FIRST = "model.layers.0.output_adapters.adapters.tuned.adapter_"


def _diagnose(tmp_path, case="llama-houlsby", change=None, *, top=None, base="llama", **inner):
    copy = shutil.copytree(FIXTURES / case, tmp_path / "copy")
    path = copy / "adapter_config.json"
    config = json.loads(path.read_text()) | (top or {})
    if isinstance(config["config"], dict):
        config["config"] |= inner
    path.write_text(json.dumps(config))
    if change is not None:
        save_file(change(load_file(copy / FILE)), copy / FILE)
    return _found(copy, tmp_path, base)


def _found(directory, tmp_path, base="llama", **more):
    tuned = {"tuned": ("base", directory), **more}
    chains, _, diags = chains_of(deployment(FIXTURES / base, tuned, max_model_len=64), tmp_path / "zoo")
    assert (chains.keys() >= tuned.keys()) == (not diags.has_errors)
    return {item.code.id: " ".join((item.message, *item.notes)) for item in diags}


def test_the_untouched_one_is_accepted(tmp_path):
    assert _diagnose(tmp_path) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_gating", True),
        ("phm_layer", True),
        ("inv_adapter", "nice"),
        ("cross_adapter", True),
        ("residual_before_ln", "post_add"),
        ("original_ln_after", False),
        ("original_ln_after", 1),
        ("reduction_factor", 0),
        ("reduction_factor", {}),
        ("reduction_factor", "16"),
        ("reduction_factor", 1e-300),
        ("leave_out", [0.5]),
        ("scaling", 4),
        ("scaling", "loud"),
        ("non_linearity", "softsign"),
        ("non_linearity", None),
        ("a_field_of_tomorrow", 3),
    ],
)
def test_a_field_that_is_not_understood(field, value, tmp_path):
    found = _diagnose(tmp_path, **{field: value})
    assert set(found) == {"BC207"}
    assert field in found["BC207"]


def test_a_stream_that_would_be_added_twice(tmp_path):
    found = _diagnose(tmp_path, original_ln_before=True, residual_before_ln=False)
    assert "added 2 times" in found["BC207"]


def test_a_norm_over_sublayer_and_bottleneck(tmp_path):
    found = _diagnose(tmp_path, case="llama-norms", adapter_residual_before_ln=True)
    assert "adapter_residual_before_ln" in found["BC207"]


@pytest.mark.parametrize(
    ("top", "code"),
    [
        ({"config": "pfeiffer"}, "BC208"),
        ({"model_type": "bert"}, "BC208"),
        ({"model_type": "qwen2"}, "BC208"),
        ({"config": {"architecture": "lora", "r": 8}}, "BC208"),
        ({"name": 3}, "BC207"),
        ({"hidden_size": "32"}, "BC207"),
        ({"hidden_size": 64}, "BC202"),
        ({"author": "somebody"}, "BC207"),
    ],
)
def test_a_configuration_of_something_else(top, code, tmp_path):
    assert code in _diagnose(tmp_path, top=top)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda held: held | {"invertible_adapters.tuned.F.0.weight": torch.ones(2)}, "BC204"),
        (lambda held: {name: held[name] for name in sorted(held)[1:]}, "BC211"),
        (lambda held: held | {f"{_FIRST}up.weight": held[f"{_FIRST}up.weight"] / 0}, "BC203"),
        (lambda held: held | {f"{_FIRST}up.weight": torch.ones(32, 9)}, "BC202"),
        (lambda held: held | {f"{_FIRST}up.bias": torch.ones(32, dtype=torch.int8)}, "BC209"),
        (lambda held: {name.replace("tuned", "other"): tensor for name, tensor in held.items()}, "BC204"),
    ],
)
def test_a_tensor_that_does_not_fit(change, code, tmp_path):
    assert code in _diagnose(tmp_path, change=change)


def test_a_norm_under_two_names_that_differ(tmp_path):
    name = f"{_FIRST}down.0.weight"
    found = _diagnose(tmp_path, case="llama-norms", change=lambda held: held | {name: held[name] + 1})
    assert "differs from its norm" in found["BC202"]


def test_layers_that_are_left_out_have_no_tensors(tmp_path):
    assert set(_diagnose(tmp_path, leave_out=[0])) == {"BC204"}


def test_nothing_anywhere(tmp_path):
    assert "BC211" in _diagnose(tmp_path, mh_adapter=False, output_adapter=False)


@pytest.mark.parametrize("part", ["head_config.json", "model_head.safetensors", "embedding.pt"])
def test_a_head_beside_it(part, tmp_path):
    copy = shutil.copytree(FIXTURES / "llama-houlsby", tmp_path / "copy")
    (copy / part).write_bytes(b"{}")
    found = _found(copy, tmp_path)
    assert set(found) == {"BC204"}
    assert part in found["BC204"]


def test_a_pickle(tmp_path):
    copy = shutil.copytree(FIXTURES / "llama-houlsby", tmp_path / "copy")
    (copy / FILE).rename(copy / "pytorch_adapter.bin")
    assert set(_found(copy, tmp_path)) == {"BC206"}


def test_one_on_another(tmp_path):
    found = _found(FIXTURES / "llama-houlsby", tmp_path, upper=("tuned", FIXTURES / "llama-parallel"))
    assert set(found) == {"BC208"}
    assert "stands on another one" in found["BC208"]
