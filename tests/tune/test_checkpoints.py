"""One model in the forms in which checkpoints come: the same tensors, whatever files and names they stand in."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from blockc.zoo import Zoo
from tests.support.binding import bound
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.tiny_models import CONFIGS, save_model
from tests.support.traced_once import once


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directory, traced model and path of each."""
    found = {}
    for name in ("llama", "llama-tied", "gpt2"):
        root = save_model(name, tmp_path_factory.mktemp(name), dtype=torch.bfloat16)
        traced = once(CONFIGS[name], dtype="bfloat16")
        path, reported = bound(traced, root, root / "zoo")
        assert reported == {}
        found[name] = root, traced, path
    return found


def _variant(models, name, tmp_path, change):
    """The path of a copy whose tensors were changed, and what was reported."""
    root, traced, _ = models[name]
    copy = shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("zoo"))
    tensors = load_file(copy / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, copy / "model.safetensors")
    return bound(traced, copy, tmp_path / "zoo")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
def test_a_wider_copy_is_the_same_model(name, dtype, models, tmp_path):
    path, reported = _variant(models, name, tmp_path, lambda tensors: {k: v.to(dtype) for k, v in tensors.items()})
    assert reported == {}
    assert path.digest == models[name][2].digest


def test_a_float16_copy_is_cast_to_the_dtype_of_the_spec(models, tmp_path):
    def narrow(tensors):
        return {key: value.to(torch.float16) for key, value in tensors.items()}

    def back(tensors):
        return {key: value.to(torch.float16).to(torch.bfloat16) for key, value in tensors.items()}

    (one, _), (other, _) = (
        _variant(models, "llama", tmp_path / name, change) for name, change in (("1", narrow), ("2", back))
    )
    assert one.digest == other.digest
    assert one.dtype == "BF16"


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_with_and_without_its_prefix(prefix, models, tmp_path):
    path, reported = _variant(
        models, "gpt2", tmp_path,
        lambda tensors: {prefix + key.removeprefix("transformer."): value for key, value in tensors.items()},
    )  # fmt: skip
    assert reported == {}
    assert path.digest == models["gpt2"][2].digest


def test_tied_embeddings_stored_once_under_either_name_or_twice(models, tmp_path):
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    changes = {
        "head": lambda tensors: {head: tensors.pop(embedding), **tensors},
        "both": lambda tensors: {head: tensors[embedding].clone(), **tensors},
    }
    for name, change in changes.items():
        path, reported = _variant(models, "llama-tied", tmp_path / name, change)
        assert reported == {}
        assert path.digest == models["llama-tied"][2].digest


def test_tied_embeddings_that_differ_are_not_tied(models, tmp_path):
    """So does transformers, with a warning: what the file holds counts."""
    change = {"lm_head.weight": torch.full((128, 64), 0.5, dtype=torch.bfloat16)}
    path, reported = _variant(models, "llama-tied", tmp_path, lambda tensors: tensors | change)
    assert reported == {}
    last, known = path.blocks[-1], models["llama-tied"][2]
    assert path.blocks[0].digest == known.blocks[0].digest
    assert last.digest != known.blocks[-1].digest


def test_shards_are_the_same_model(models, tmp_path):
    root, traced, known = models["llama"]
    AutoModelForCausalLM.from_pretrained(root, dtype=torch.bfloat16).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    path, reported = bound(traced, tmp_path, tmp_path / "zoo")
    assert reported == {}
    assert path.digest == known.digest


def test_the_dtype_of_the_configuration_does_not_matter(tmp_path):
    base = save_model("llama", tmp_path / "base", dtype=torch.bfloat16)
    variants = {"dtype": "float32", "torch_dtype": "float16"}
    plan = {}
    for key, value in variants.items():
        copy = shutil.copytree(base, tmp_path / key)
        config = json.loads((copy / "config.json").read_text())
        config.pop("dtype", None)
        (copy / "config.json").write_text(json.dumps(config | {key: value}))
        plan[key] = ("base", copy)
    chains, _, diags = chains_of(deployment(base, plan, dtype="bfloat16"), tmp_path / "zoo")
    assert not list(diags)
    assert len({chain.path.digest for chain in chains.values()}) == 1
    assert chains["base"].path.dtype == "BF16"


def test_a_second_time_nothing_is_written(models, tmp_path):
    root, traced, _ = models["llama"]
    told = []
    for _ in range(2):
        bound(traced, root, tmp_path / "zoo", on_bytes=lambda done, total: told.append((done, total)))
        told.append(sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "zoo" / "packs").iterdir()))
    written = [entry for entry in told if isinstance(entry, list)]
    assert written[0] == written[1]
    total = Zoo(tmp_path / "zoo").tensors_bytes()
    done = [entry for entry in told if isinstance(entry, tuple)]
    assert done[-1][0] == done[-1][1]
    assert done[-1][1] >= total - 10_000  # equal norms are stored once, rotary frequencies are no weights
    assert [first for first, _ in done[: len(done) // 2]] == sorted(first for first, _ in done[: len(done) // 2])
