"""A fine-tune that would not be applied in full is refused, by code and by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.adapters import configure
from tests.support.chains import chains_of
from tests.support.deployments import deployment


def _diagnose(base, directory, tmp_path):
    chains, _, diags = chains_of(deployment(base, {"tuned": ("base", directory)}), tmp_path / "zoo")
    assert ("tuned" in chains) == (not diags.has_errors)
    return {item.code.id: " ".join((item.message, *item.notes)) for item in diags}


def _rewrite(directory, change, file="adapter_model.safetensors"):
    tensors = load_file(directory / file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / file)


def test_the_untouched_adapter_is_accepted(base, adapter, tmp_path):
    assert _diagnose(base, adapter, tmp_path) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "some"),
        ("modules_to_save", "lm_head"),
        ("trainable_token_indices", [1, 1]),
        ("trainable_token_indices", {"lm_head": [-1]}),
        ("layer_replication", [[0, 2]]),
        ("init_lora_weights", "pissa_niter_4"),
        ("a_field_of_tomorrow", 3),
        ("kasa_config", {}),  # PEFT reads an empty mapping as: on, with all defaults
        ("init_lora_weights", "one_of_tomorrow"),
        ("lora_alpha", 10**400),
        ("alpha_pattern", {"q_proj": 10**400}),
        ("r", 0),
        ("r", "8"),
        ("lora_alpha", None),
        ("target_modules", None),
        ("target_modules", "("),
        ("rank_pattern", {"q_proj": "4"}),
        ("layers_to_transform", [1.5]),
        ("use_rslora", "false"),  # a word is true to Python
        ("use_dora", 1),
        ("modules_to_save", ["("]),
        ("exclude_modules", 3),
        ("layers_pattern", {"layers": 1}),
        ("rank_pattern", {"(": 4}),
        ("target_modules", "q{e<=1}_proj"),  # `re` and `regex` read it in two ways
        ("target_modules", "[[:alpha:]]_proj"),
        ("target_modules", "(" * 10_000),
        ("target_modules", "(q|v)*" * 10_000),
        ("rank_pattern", {f"layers.{index}.q_proj": 4 for index in range(100_000)}),
    ],
)
def test_a_field_that_is_not_understood(field, value, base, copy, tmp_path):
    configure(copy, **{field: value})
    found = _diagnose(base, copy, tmp_path)
    assert set(found) == {"BC207"}
    assert field in found["BC207"]


@pytest.mark.parametrize(
    ("field", "value", "missing"),
    [
        ("use_dora", True, "model.layers.0.self_attn.q_proj.lora_magnitude_vector"),
        ("lora_bias", True, "model.layers.0.self_attn.q_proj.lora_B.bias"),
        ("modules_to_save", ["lm_head"], "lm_head.weight"),
        ("modules_to_save", ["score"], "score.weight"),
        ("trainable_token_indices", [1, 2], "model.embed_tokens.token_adapter.trainable_tokens_delta"),
        ("trainable_token_indices", {"wte": [1]}, "wte.token_adapter.trainable_tokens_delta"),
    ],
)
def test_a_field_whose_tensors_are_missing(field, value, missing, base, copy, tmp_path):
    configure(copy, **{field: value})
    found = _diagnose(base, copy, tmp_path)
    assert set(found) == {"BC211"}
    assert missing in found["BC211"]


@pytest.mark.parametrize(("field", "value"), [("layers_to_transform", [0]), ("layers_pattern", "layers")])
def test_layers_beside_a_pattern_of_modules(field, value, base, copy, tmp_path):
    configure(copy, target_modules=r".*\.(q|v)_proj", **{field: value})
    assert field in _diagnose(base, copy, tmp_path)["BC207"]


def test_a_scale_beyond_float32(base, copy, tmp_path):
    configure(copy, lora_alpha=1e300)
    assert "not finite" in _diagnose(base, copy, tmp_path)["BC202"]


def test_one_matrix_under_two_names(base, copy, tmp_path):
    name = sorted(load_file(copy / "adapter_model.safetensors"))[0]
    again = name.replace(".weight", ".default.weight")
    _rewrite(copy, lambda tensors: tensors.update({again: tensors[name] + 1}))
    assert "another name" in _diagnose(base, copy, tmp_path)["BC204"]


def test_another_kind_of_adapter(base, copy, tmp_path):
    configure(copy, peft_type="OF_TOMORROW")
    assert "OF_TOMORROW" in _diagnose(base, copy, tmp_path)["BC208"]


def test_a_kind_that_its_tensors_are_not(base, copy, tmp_path):
    (copy / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"]}))
    assert {"BC204", "BC211"} <= set(_diagnose(base, copy, tmp_path))


def test_a_rank_that_the_configuration_denies(base, copy, tmp_path):
    configure(copy, r=8)
    assert "BC202" in _diagnose(base, copy, tmp_path)


def test_an_adapter_that_targets_nothing(base, copy, tmp_path):
    configure(copy, target_modules=["query_key_value"])
    assert {"BC204", "BC211"} <= set(_diagnose(base, copy, tmp_path))


def test_not_a_number(base, copy, tmp_path):
    name = sorted(load_file(copy / "adapter_model.safetensors"))[0]
    _rewrite(copy, lambda tensors: tensors[name].view(-1)[0].fill_(float("nan")))
    assert name in _diagnose(base, copy, tmp_path)["BC203"]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.99])
def test_a_truncated_file(fraction, base, copy, tmp_path):
    file = copy / "adapter_model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * fraction)])
    assert "adapter_model.safetensors" in _diagnose(base, copy, tmp_path)["BC203"]


def test_pickled_weights(base, copy, tmp_path):
    (copy / "adapter_model.safetensors").unlink()
    (copy / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle" in _diagnose(base, copy, tmp_path)["BC206"]


def test_no_files_at_all(base, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "BC201" in _diagnose(base, tmp_path / "empty", tmp_path)
    assert "BC201" in _diagnose(base, tmp_path / "absent", tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\udcff", "[" * 100_000])
def test_a_malformed_configuration(text, base, copy, tmp_path):
    (copy / "adapter_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "BC203" in _diagnose(base, copy, tmp_path)


class TestFullCheckpoints:
    @pytest.fixture
    def full(self, base, tmp_path):
        return shutil.copytree(base, tmp_path / "full")

    def test_an_extra_tensor(self, base, full, tmp_path):
        _rewrite(full, lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}), "model.safetensors")
        assert "model.extra.weight" in _diagnose(base, full, tmp_path)["BC204"]

    def test_a_quantised_checkpoint(self, base, full, tmp_path):
        config = json.loads((full / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
        (full / "config.json").write_text(json.dumps(config))
        assert "awq" in _diagnose(base, full, tmp_path)["BC209"]

    @pytest.mark.parametrize("model_type", ["bloom", "falcon", "made-up", None, 7])
    def test_an_architecture_that_is_not_supported(self, model_type, base, full, tmp_path):
        config = json.loads((full / "config.json").read_text()) | {"model_type": model_type}
        (full / "config.json").write_text(json.dumps(config))
        assert "BC205" in _diagnose(base, full, tmp_path)

    def test_dynamic_rope_is_refused_with_its_reason(self, base, full, tmp_path):
        config = json.loads((full / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        (full / "config.json").write_text(json.dumps(config))
        assert "BC205" in _diagnose(base, full, tmp_path)
