"""Model files that are damaged, foreign or dangerous: refused in full, with the file and the line of the spec."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.fleet import copied

ADAPTER = "german/adapter_model.safetensors"
BASE = "base/model.safetensors"


@pytest.fixture
def refused(blockc, tmp_path: Path) -> Callable[..., str]:
    """Change a copy of the samples, compile it, see it refused; the words it was refused with."""

    def run(change: Callable[[Path], object], *words: str) -> str:
        folder = copied(tmp_path / "models", "base", "german")
        change(folder)
        ended = blockc("compile", folder / "small.blk", "-o", tmp_path / "out" / "plan.json")
        assert ended.code == 1
        assert ended.out == ""
        assert not (tmp_path / "out" / "plan.json").exists()
        assert "small.blk:" in ended.errors
        assert "= help:" in ended.errors
        for word in words:
            assert word in ended.errors
        return str(ended.errors)

    return run


@pytest.mark.parametrize("kept", [0, 7, 300, 0.5, -1])
@pytest.mark.parametrize("name", [BASE, ADAPTER])
def test_truncated_weights_are_refused_by_name(refused, name, kept):
    def cut(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * kept) if 0 < kept < 1 else kept])

    owner, _, file = name.partition("/")
    refused(cut, "BC203", f"{file} of ./{owner} is damaged", "copy the file again")


def test_a_shape_that_does_not_fit_the_base(refused):
    def widen(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER)
        tensors = {name: torch.zeros(value.shape[0], 200) if "q_proj.lora_A" in name else value
                   for name, value in tensors.items()}  # fmt: skip
        save_file(tensors, folder / ADAPTER)

    refused(
        widen, "BC202", "./german do not fit its base", "q_proj.lora_A.weight is [4, 200], its place takes [4, 192]"
    )


def test_a_layer_that_the_base_does_not_have(refused):
    def rename(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER)
        save_file({name.replace("layers.5", "layers.9"): value for name, value in tensors.items()}, folder / ADAPTER)

    refused(
        rename, "BC204", "the base has no linear `model.layers.9.mlp.down_proj`", "not applied in full is not served"
    )


def test_pickled_weights_are_never_read(refused, tmp_path: Path):
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return Path.touch, (tmp_path / "it ran",)

    def pickled(folder: Path) -> None:
        (folder / ADAPTER).unlink()
        (folder / "german" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))

    refused(pickled, "BC206", "`german` has pickled weights only", "convert the file to safetensors")
    assert not (tmp_path / "it ran").exists()


def test_a_pickle_with_another_name_is_never_read(refused, tmp_path: Path):
    refused(lambda folder: (folder / BASE).write_bytes(pickle.dumps({})), "BC203", "model.safetensors of ./base")


@pytest.mark.parametrize(("field", "value"), [("brand_new_trick", 3), ("bias", "some"), ("use_qalora", True)])
def test_a_field_that_is_not_understood_is_named(refused, field, value):
    def add(folder: Path) -> None:
        path = folder / "german" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))

    refused(add, "BC207", f"`{field} = ", "merge the adapter with PEFT")


@pytest.mark.parametrize(
    "name", ["base/config.json", "base/tokenizer.json", "base/generation_config.json", "german/adapter_config.json"]
)
def test_a_half_written_json_file_is_named(refused, name):
    owner, _, file = name.partition("/")
    refused(lambda folder: (folder / name).write_text('{"a": '), "BC203", f"{file} in ./{owner} cannot be read")


def test_missing_files_are_named_before_torch_is_imported(refused):
    def remove(folder: Path) -> None:
        shutil.rmtree(folder / "base")
        (folder / "german" / "adapter_config.json").unlink()

    errors = refused(remove, "no folder `./base` for the base `sample`", "no `adapter_config.json` in `./german`")
    assert "trace" not in errors
