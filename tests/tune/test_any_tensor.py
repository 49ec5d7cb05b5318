"""Delete, rename or reshape any one tensor of an adapter or of a checkpoint: refused each time, by its name."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from blockc.diag import Diagnostics
from blockc.graph import Chain
from blockc.tune.adapter import AdapterFiles
from blockc.tune.checkpoint import open_checkpoint
from blockc.tune.kinds import lora
from blockc.zoo import Zoo
from tests.support.adapters import save_lora
from tests.support.binding import AT, bound
from tests.support.tiny_models import CONFIGS, save_model
from tests.support.traced_once import once


def _delete(tensors, name):
    del tensors[name]


def _rename(tensors, name):
    tensors[f"{name}_old"] = tensors.pop(name)


def _move(tensors, name):
    """To a layer that is not there, or out of the model."""
    tensors[name.replace("layers.", "layers.9") if "layers." in name else f"x.{name}"] = tensors.pop(name)


def _shorten(tensors, name):
    tensors[name] = tensors[name][:-1].clone()


def _flatten(tensors, name):
    tensors[name] = tensors[name].reshape(-1, 1).clone()


def _lengthen(tensors, name):
    tensors[name] = tensors[name].repeat_interleave(2, 0)


_CHANGES = [_delete, _rename, _move, _shorten, _flatten, _lengthen]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = save_model("llama", tmp_path_factory.mktemp("base"))
    traced = once(CONFIGS["llama"], dtype="float32")
    path, reported = bound(traced, root, root / "zoo")
    assert reported == {}
    return root, traced, path


@pytest.mark.parametrize("change", _CHANGES)
def test_of_a_checkpoint(change, base, tmp_path):
    root, traced, _ = base
    tensors = load_file(root / "model.safetensors")
    assert len(tensors) == 4 * 9 + 3
    for name in tensors:
        changed = dict(tensors)
        change(changed, name)
        save_file(changed, tmp_path / "model.safetensors")
        path, reported = bound(traced, tmp_path, tmp_path / "zoo")
        assert path is None
        assert name in " ".join(reported.values())
        assert reported.keys() <= {"BC211", "BC204", "BC202"}


@pytest.mark.parametrize("change", _CHANGES)
@pytest.mark.parametrize("indexed", [False, True])
def test_of_a_checkpoint_in_shards(change, indexed, base, tmp_path):
    root, traced, _ = base
    AutoModelForCausalLM.from_pretrained(root).save_pretrained(tmp_path, max_shard_size="200KB")
    index = tmp_path / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    for shard in sorted(tmp_path.glob("model-*.safetensors")):
        tensors = load_file(shard)
        for name in list(tensors)[::3]:
            changed = dict(tensors)
            change(changed, name)
            save_file(changed, shard)
            if indexed:  # the index tells of the change
                names = {key: file for key, file in listing["weight_map"].items() if file != shard.name}
                index.write_text(json.dumps({"weight_map": names | dict.fromkeys(changed, shard.name)}))
            path, reported = bound(traced, tmp_path, tmp_path / "zoo")
            assert path is None
            assert name in " ".join(reported.values())
        save_file(tensors, shard)
        index.write_text(json.dumps(listing))


@pytest.mark.parametrize("change", _CHANGES)
def test_of_an_adapter(change, base, adapter, tmp_path):
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 4 * 7 * 2
    config = json.loads((adapter / "adapter_config.json").read_text())
    shutil.copytree(adapter, tmp_path / "copy")
    for name in tensors:
        changed = dict(tensors)
        change(changed, name)
        save_file(changed, tmp_path / "copy" / "adapter_model.safetensors")
        sides, text = _read(base[2], config, tmp_path)
        assert sides is None
        assert name.removeprefix("base_model.model.") in text


def test_the_untouched_adapter_is_accepted(base, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "copy")
    sides, text = _read(base[2], json.loads((adapter / "adapter_config.json").read_text()), tmp_path)
    assert len(sides) == 4 * 7
    assert text == ""


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_lora(base[0], tmp_path_factory.mktemp("adapter"))


def _read(path, config, tmp_path):
    diags = Diagnostics()
    files = open_checkpoint(
        tmp_path / "copy", stem="adapter_model", index=None, written="copy", diags=diags, at=AT
    )  # fmt: skip
    zoo = Zoo(tmp_path / "zoo", create=True)
    parent = Chain(path=path, sides=(), assets={}, stop_token_ids=())
    tuned = lora.read(
        AdapterFiles(config=config, checkpoint=files, parent=parent, written="copy", zoo=zoo, diags=diags, at=AT)
    )
    return None if tuned is None else tuned.sides, " ".join(" ".join((item.message, *item.notes)) for item in diags)
