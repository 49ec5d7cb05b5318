"""Fine-tunes that added tokens: a table or head that is not what its name says, or of which rows are missing."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForSequenceClassification

from tests.support.adapters import configure
from tests.support.architectures import tiny_config
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_adapter
from tests.support.tiny_models import save_model

WHOLE = 140
HEAD, TABLE = "base_model.model.lm_head", "base_model.model.model.embed_tokens"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    return {name: save_model(name, root / name) for name in ("llama", "llama-tied", "gpt2", "phi")}


def _saved(bases, name, root, *targets, saving=None, vocabulary=WHOLE, **settings):
    targets = ["c_attn" if name == "gpt2" else "q_proj", *targets]
    return save_adapter(
        bases[name], root / "tuned", LoraConfig(target_modules=targets, **settings), vocabulary=vocabulary,
        **saving or {},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(bases, tmp_path_factory):
    """By base: table and head trained whole, everything saved that PEFT saves."""
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]}
    return {name: _saved(bases, name, tmp_path_factory.mktemp(name), **saved) for name in ("llama", "llama-tied")}


def _rewritten(directory, root, change):
    copy = shutil.copytree(directory, root / "copy")
    tensors = load_file(copy / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, copy / "adapter_model.safetensors")
    return copy


def _diagnose(base, directory, tmp_path):
    chains, _, diags = chains_of(deployment(base, {"tuned": ("base", directory)}, max_model_len=64), tmp_path / "zoo")
    assert ("tuned" in chains) == (not diags.has_errors)
    return {item.code.id: " ".join((item.message, *item.notes)) for item in diags}


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_what_peft_saves_has_all_these_names(name, whole, bases, tmp_path):
    held = load_file(whole[name] / "adapter_model.safetensors")
    for module in (HEAD, TABLE):
        assert {f"{module}{part}.weight" for part in ("", ".modules_to_save", ".original_module")} <= held.keys()
    assert _diagnose(bases[name], whole[name], tmp_path) == {}


@pytest.mark.parametrize("module", [HEAD, TABLE])
@pytest.mark.parametrize("change", [lambda value: value + 1, lambda value: value.bfloat16(), lambda value: value[:-1]])
def test_a_copy_that_is_none(module, change, whole, bases, tmp_path):
    name = f"{module}.modules_to_save.weight"
    copy = _rewritten(whole["llama"], tmp_path, lambda held: held.update({name: change(held[name])}))
    found = _diagnose(bases["llama"], copy, tmp_path)
    assert found.keys() == {"BC202"}
    assert f"{name} should be a copy of {module}.weight and is not" in found["BC202"]


def test_zeros_of_two_signs_are_no_copies(whole, bases, tmp_path):
    def change(held):
        held[f"{HEAD}.weight"][3, 4], held[f"{HEAD}.modules_to_save.weight"][3, 4] = 0.0, -0.0

    assert "BC202" in _diagnose(bases["llama"], _rewritten(whole["llama"], tmp_path, change), tmp_path)


@pytest.mark.parametrize("row", [0, 127])
def test_an_original_that_is_not_the_bases(row, whole, bases, tmp_path):
    name = f"{TABLE}.original_module.weight"
    copy = _rewritten(whole["llama"], tmp_path, lambda held: held[name][row].add_(0.1))
    found = _diagnose(bases["llama"], copy, tmp_path)
    assert found.keys() == {"BC202"}
    assert "model.embed_tokens.original_module.weight should be the base's own" in found["BC202"]


def test_rows_of_an_original_that_nothing_reads(whole, bases, tmp_path):
    """Of added tokens: replaced by the trained ones, and tied to nothing."""
    name = f"{TABLE}.original_module.weight"
    copy = _rewritten(whole["llama"], tmp_path, lambda held: held[name][130].add_(0.1))
    assert _diagnose(bases["llama"], copy, tmp_path) == {}


def test_originals_of_one_matrix_that_are_two(whole, bases, tmp_path):
    name = f"{TABLE}.original_module.weight"
    copy = _rewritten(whole["llama-tied"], tmp_path, lambda held: held[name][130].add_(0.1))
    found = _diagnose(bases["llama-tied"], copy, tmp_path)
    assert found.keys() == {"BC202"}
    assert "model.embed_tokens and lm_head are one matrix in the base and two in the files" in found["BC202"]


def test_an_original_in_less_precision(whole, bases, tmp_path):
    """As a training has it that loaded the base in bfloat16."""

    def change(held):
        for module in (HEAD, TABLE):
            held[f"{module}.original_module.weight"] = held[f"{module}.original_module.weight"].bfloat16()

    assert _diagnose(bases["llama"], _rewritten(whole["llama"], tmp_path, change), tmp_path) == {}


@pytest.mark.parametrize("part", ["", ".modules_to_save", ".original_module"])
def test_values_that_are_no_numbers(part, whole, bases, tmp_path):
    copy = _rewritten(whole["llama"], tmp_path, lambda held: held[f"{HEAD}{part}.weight"].fill_(torch.nan))
    assert {"BC202", "BC203"} & _diagnose(bases["llama"], copy, tmp_path).keys()


def test_a_copy_without_the_trained_one(whole, bases, tmp_path):
    copy = _rewritten(whole["llama"], tmp_path, lambda held: held.pop(f"{HEAD}.weight"))
    found = _diagnose(bases["llama"], copy, tmp_path)
    assert found.keys() == {"BC211"}
    assert "lm_head.weight" in found["BC211"]


def test_copies_that_the_configuration_does_not_speak_of(whole, bases, tmp_path):
    copy = _rewritten(whole["llama"], tmp_path, lambda held: None)
    configure(copy, modules_to_save=None)
    found = _diagnose(bases["llama"], copy, tmp_path)
    assert found.keys() == {"BC204"}
    assert "lm_head.modules_to_save.weight" in found["BC204"]


def test_the_bases_own_matrix_under_two_names(bases, tmp_path):
    tuned = _saved(bases, "llama", tmp_path)
    for value in (0.0, 0.1):
        copy = _rewritten(
            tuned, tmp_path / str(value),
            lambda held, value=value: held.update({f"{HEAD}.base_layer.weight": held[f"{HEAD}.weight"] + value}),
        )  # fmt: skip
        assert _diagnose(bases["llama"], copy, tmp_path).keys() == ({"BC202"} if value else set())


@pytest.mark.parametrize(
    ("name", "targets", "settings", "lacking"),
    [
        ("llama", ["embed_tokens"], {}, "lm_head.weight 128"),
        ("llama", ["lm_head"], {}, "model.embed_tokens.weight 128"),
        ("llama", [], {"modules_to_save": ["lm_head"], "saving": {"save_embedding_layers": False}}, "embed_tokens"),
        ("llama-tied", [], {"modules_to_save": ["lm_head"], "saving": {"save_embedding_layers": False}}, "embed_token"),
        ("llama", ["lm_head"], {"trainable_token_indices": [128, 129]}, "lm_head.weight has 140 rows"),
        ("llama", [], {"trainable_token_indices": [*range(128, 140)], "saving": {"save_embedding_layers": False}},
         "lm_head.weight 128"),
        ("phi", ["embed_tokens", "lm_head"], {"drop": "lm_head.base_layer.bias"}, "lm_head.bias 128"),
    ],
)  # fmt: skip
def test_rows_that_no_file_holds(name, targets, settings, lacking, bases, tmp_path):
    drop = settings.pop("drop", None)
    tuned = _saved(bases, name, tmp_path, *targets, **settings)
    if drop:
        tuned = _rewritten(tuned, tmp_path, lambda held: held.pop(f"base_model.model.{drop}"))
    found = _diagnose(bases[name], tuned, tmp_path)
    assert found.keys() == {"BC211"}
    assert lacking in found["BC211"]


@pytest.mark.parametrize("tokens", [[5, 129], [128, 130], [5, 10**15], [5, 2**70]])
def test_rows_of_tokens_with_a_gap_before_them(tokens, bases, tmp_path):
    tuned = _saved(bases, "llama-tied", tmp_path, trainable_token_indices=[5, 6], vocabulary=None)
    configure(tuned, trainable_token_indices=tokens)
    found = _diagnose(bases["llama-tied"], tuned, tmp_path)
    assert found.keys() == {"BC202"}
    assert f"token {tokens[1]} lies outside the 128 of model.embed_tokens" in found["BC202"]


def test_a_tied_head_that_is_missing(bases, tmp_path):
    """`ensure_weight_tying` saves what is tied to a saved table; PEFT does not load the table without it."""
    settings = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    tuned = _saved(bases, "llama-tied", tmp_path, vocabulary=None, **settings)
    assert _diagnose(bases["llama-tied"], tuned, tmp_path) == {}
    copy = _rewritten(tuned, tmp_path, lambda held: held.pop(f"{HEAD}.weight"))
    found = _diagnose(bases["llama-tied"], copy, tmp_path)
    assert found.keys() == {"BC211"}
    assert "lm_head.weight" in found["BC211"]


def test_a_tied_adapter_that_peft_saves_and_does_not_load(bases, tmp_path):
    """It knows tied tables by their names, and GPT-2's is not among them."""
    tuned = _saved(bases, "gpt2", tmp_path, "lm_head", ensure_weight_tying=True, vocabulary=None)
    found = _diagnose(bases["gpt2"], tuned, tmp_path)
    assert found.keys() == {"BC204"}
    assert "lm_head.lora_A.weight" in found["BC204"]


def test_rows_of_a_head_with_a_bias(bases, tmp_path):
    tuned = _saved(bases, "phi", tmp_path, trainable_token_indices={"lm_head": [5, 6]}, vocabulary=None)
    found = _diagnose(bases["phi"], tuned, tmp_path)
    assert found.keys() == {"BC208"}
    assert "trains rows of lm_head, which has a bias" in found["BC208"]


@pytest.mark.parametrize("saved", [True, False])
def test_a_tokenizer_with_tokens_that_have_no_rows(saved, bases, tmp_path):
    tuned = _saved(bases, "llama", tmp_path, saving={"save_embedding_layers": saved})
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(128)}, unk_token="w0"))
    words.add_tokens([f"<new{index}>" for index in range(12)])
    words.save(str(tuned / "tokenizer.json"))
    found = _diagnose(bases["llama"], tuned, tmp_path)
    assert found.keys() == (set() if saved else {"BC213"})
    assert saved or "12 tokens that it holds no rows for <new0>, <new1>" in found["BC213"]


@pytest.mark.parametrize("part", ["dense", "out_proj"])
def test_a_classifier_is_no_vocabulary(part, tmp_path):
    """Its linears come after the choice of a token, as heads do; of another height is only a head of its own."""
    torch.manual_seed(0)
    base, model = (
        tmp_path / "base",
        AutoModelForSequenceClassification.from_config(tiny_config("roberta", num_labels=3)),
    )
    model.save_pretrained(base)
    saved = ["classifier.dense", "classifier.out_proj"]
    tuned = save_adapter(
        base, tmp_path / "tuned", LoraConfig(target_modules=["query"], modules_to_save=saved), model=model
    )  # fmt: skip
    assert _diagnose(base, tuned, tmp_path) == {}

    def higher(held):
        for name in [name for name in held if f"classifier.{part}" in name]:
            held[name] = torch.cat([held[name], held[name][:1]])

    found = _diagnose(base, _rewritten(tuned, tmp_path, higher), tmp_path)
    assert found.keys() == ({"BC202"} if part == "dense" else set())
    assert part == "out_proj" or "classifier.dense.weight" in found["BC202"]
