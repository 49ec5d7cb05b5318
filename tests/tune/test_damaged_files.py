"""Files that lie or are damaged: a diagnostic that names the file, and the tensor where one is to blame, at once."""

from __future__ import annotations

import json
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockc.tune.full import is_finite
from tests.conftest import Promised
from tests.support.binding import bound
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.tiny_models import CONFIGS, save_model
from tests.support.traced_once import once


@pytest.fixture(scope="module")
def traced():
    return once(CONFIGS["llama"], dtype="float32")


@pytest.fixture
def model(tmp_path):
    return save_model("llama", tmp_path / "model")


def _reported(traced, model, tmp_path):
    start_s = time.perf_counter()
    path, reported = bound(traced, model, tmp_path / "zoo")
    assert path is None
    assert time.perf_counter() - start_s < 2
    return reported


def _with_header(file, change):
    """Rewrite the header of a file, its tensors' bytes untouched."""
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    text = change(header)
    text = text if isinstance(text, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


_NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda header: header[_NAME].update(shape=[96, 65]), True),
        (lambda header: header[_NAME].update(data_offsets=[0, 1 << 50]), True),
        (lambda header: header[_NAME].update(data_offsets=[8, 8]), True),
        (lambda header: header[_NAME].update(dtype="F31"), True),
        (lambda header: header[_NAME].update(shape=[-96, -64]), True),
        (lambda header: header.update({_NAME: 7}), True),
        (lambda header: header.pop(_NAME), False),
        (lambda header: b"[" * 100_000, False),
        (lambda header: b'{"a": "\xff"}', False),
        (lambda header: b"", False),
    ],
)
def test_a_header_that_lies(change, names, traced, model, tmp_path):
    _with_header(model / "model.safetensors", change)
    text = _reported(traced, model, tmp_path)["BC203"]
    assert "model.safetensors of model is damaged" in text
    assert not names or _NAME in text


@pytest.mark.parametrize("size", [1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_that_is_said_to_be_larger_than_its_file(size, traced, model, tmp_path):
    file = model / "model.safetensors"
    file.write_bytes(struct.pack("<Q", size) + file.read_bytes()[8:])
    assert "model.safetensors" in _reported(traced, model, tmp_path)["BC203"]


@pytest.mark.promise("files")
@pytest.mark.parametrize("parts", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_a_truncated_file(parts, traced, model, tmp_path, promised: Promised):
    file = model / "model.safetensors"
    data = file.read_bytes()
    for part in range(parts):
        file.write_bytes(data[: len(data) * part // parts])
        assert "model.safetensors of model is damaged" in _reported(traced, model, tmp_path)["BC203"]
    figure = f"{parts} of {parts}, each naming the file"
    promised("truncations of a checkpoint", "at every 1/64: refused, file named", figure, kept=parts >= 64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers(value, traced, model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    tensors[_NAME].view(-1)[-1] = value
    save_file(tensors, model / "model.safetensors")
    assert _NAME in _reported(traced, model, tmp_path)["BC203"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3, 70, 1000])
def test_one_such_value_is_found_wherever_it_is(count, dtype):
    values = torch.randn(count).to(dtype)
    assert is_finite(values)
    assert is_finite(values[:0])
    for place in range(count):
        for value in (float("nan"), float("inf"), -float("inf")):
            bad = values.clone()
            bad[place] = value
            assert not is_finite(bad)


def test_numbers_that_are_none_in_a_narrower_dtype(model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    tensors[_NAME].view(-1)[0] = 1e38
    save_file(tensors, model / "model.safetensors")
    text = _reported(once(CONFIGS["llama"], dtype="float16"), model, tmp_path)["BC203"]
    assert _NAME in text
    assert "float16" in text


def test_integers_in_place_of_weights(traced, model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    tensors[_NAME] = tensors[_NAME].to(torch.int8)
    save_file(tensors, model / "model.safetensors")
    assert f"{_NAME} is I8" in _reported(traced, model, tmp_path)["BC209"]


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        (b"", "BC203", "index.json"),
        (b"\xff\xfe{}", "BC203", "index.json"),
        (b"[]", "BC203", "index.json"),
        (b"{}", "BC203", "weight_map"),
        (b'{"weight_map": {"a": 3}}', "BC203", "weight_map"),
        (b'{"weight_map": {"a": "../model.safetensors"}}', "BC206", "../model.safetensors"),
        (b'{"weight_map": {"a": "model.bin"}}', "BC206", "model.bin"),
        (b'{"weight_map": {"a": "shard.safetensors"}}', "BC203", "`a` is not in shard.safetensors"),
        (b'{"weight_map": {"a": "absent.safetensors"}}', "BC201", "absent.safetensors"),
        (b'{"weight_map": {}}', "BC211", "lm_head.weight"),
    ],
)
def test_an_index_that_is_wrong(text, code, word, traced, model, tmp_path):
    (model / "model.safetensors").rename(model / "shard.safetensors")
    (model / "model.safetensors.index.json").write_bytes(text)
    reported = _reported(traced, model, tmp_path)
    assert word in reported[code]


def test_one_tensor_in_two_shards(traced, model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    index = {}
    for file, own in (("a.safetensors", tensors), ("b.safetensors", {_NAME: tensors[_NAME].clone()})):
        save_file(own, model / file)
        index |= dict.fromkeys(own, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert _NAME in _reported(traced, model, tmp_path)["BC203"]


@pytest.mark.parametrize("text", [b"", b"\xff\xfe{}", b"[]", b"{'a': 1}", b'{"model_type": "llama", "model_type": 1}'])
def test_a_configuration_that_is_no_json(text, model, tmp_path):
    (model / "config.json").write_bytes(text)
    _, _, diags = chains_of(deployment(model), tmp_path / "zoo")
    [item] = list(diags)
    assert item.code.id == "BC203"
    assert "config.json in ./model" in item.message
