"""What models have in common is stored once: bytes in the zoo against the least possible, found from the files alone.

The least is the bytes of all distinct tensors of all checkpoints after the cast to the spec's dtype, and of rotary
frequencies, which no checkpoint holds.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from blockc.verify.verify import verify
from tests.support.deployments import deployment, source
from tests.support.serving import compiled
from tests.support.tiny_models import CONFIGS, save_model

LAYERS = CONFIGS["llama"].num_hidden_layers
ROTARY_BYTES = 4 * CONFIGS["llama"].head_dim // 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """In bfloat16, with norms that differ, so that no two tensors are equal by accident."""
    return _distinct(save_model("llama", tmp_path_factory.mktemp("base") / "base", dtype=torch.bfloat16))


def _distinct(directory: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tensors = load_file(directory / "model.safetensors")
    _save(directory, {n: t + 0.1 * torch.randn(t.shape).to(t.dtype) if t.ndim == 1 else t for n, t in tensors.items()})
    return directory


def _save(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, directory / "model.safetensors", metadata={"format": "pt"})


def _copy(base: Path, target: Path, change=lambda tensors: tensors, **config: object) -> Path:
    shutil.copytree(base, target)
    _save(target, change(load_file(base / "model.safetensors")))
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


def _with_changed_top(count: int):
    def change(tensors):
        generator = torch.Generator().manual_seed(count)
        top = tuple(f"model.layers.{layer}." for layer in range(LAYERS - count, LAYERS))
        return {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
            if name.startswith(top)
            else tensor
            for name, tensor in tensors.items()
        }

    return change


def _least_bytes(*directories: Path, dtype: torch.dtype = torch.bfloat16) -> int:
    contents = set()
    for directory in directories:
        for tensor in load_file(directory / "model.safetensors").values():
            cast = tensor.to(dtype).contiguous()
            contents.add((tuple(cast.shape), cast.view(torch.uint8).numpy().tobytes()))
    return sum(len(data) for _, data in contents) + ROTARY_BYTES


def _compiled(base: Path, others: dict[str, Path], root: Path):
    result = compiled(deployment(base, {n: ("base", path) for n, path in others.items()}, dtype="bfloat16"), root)
    assert result.plan.baselines.ours_bytes == result.zoo.tensors_bytes(), "the plan counts what is stored"
    return result


def test_a_fine_tune_of_the_top_layers_stores_those_layers(base, tmp_path):
    """All depths at once; each shares what lies below its own layers, and the head, with all others."""
    models = {
        f"top{count}": _copy(base, tmp_path / f"top{count}", _with_changed_top(count)) for count in range(LAYERS + 1)
    }
    result = _compiled(base, models, tmp_path / "zoo")
    assert result.zoo.tensors_bytes() == _least_bytes(base, *models.values())
    plan = result.plan
    assert len(plan.chains) == LAYERS + 1, "the one with no layer changed is the base"
    original = plan.paths[plan.chains[plan.models["base"].chain].path].blocks
    for count in range(LAYERS + 1):
        blocks = plan.paths[plan.chains[plan.models[f"top{count}"].chain].path].blocks
        same = [mine == theirs for mine, theirs in zip(blocks, original, strict=True)]
        assert same == [True] * (1 + 2 * (LAYERS - count)) + [False] * (2 * count) + [True]
    assert plan.crossing is None


def test_a_float32_copy_of_a_bfloat16_base_stores_nothing(base, tmp_path):
    wide = _copy(base, tmp_path / "wide", lambda tensors: {n: t.float() for n, t in tensors.items()}, dtype="float32")
    assert (wide / "model.safetensors").stat().st_size > 1.9 * (base / "model.safetensors").stat().st_size
    result = _compiled(base, {"wide": wide}, tmp_path / "zoo")
    assert result.zoo.tensors_bytes() == _least_bytes(base)
    assert len(result.plan.chains) == 1


def test_tied_and_untied_copies_are_one(tmp_path):
    """A tied model has no head in its file; a copy that repeats the table as its head is the same model."""
    tied = _distinct(save_model("llama-tied", tmp_path / "tied", dtype=torch.bfloat16))
    untied = _copy(
        tied, tmp_path / "untied", lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]},
        tie_word_embeddings=False,
    )  # fmt: skip
    result = _compiled(tied, {"untied": untied}, tmp_path / "zoo")
    assert result.zoo.tensors_bytes() == _least_bytes(tied) == _least_bytes(tied, untied)
    assert len(result.plan.chains) == 1


def test_two_bases_share_a_tokenizer_and_their_embedding(base, tmp_path):
    one = shutil.copytree(base, tmp_path / "one")
    other = _distinct(save_model("llama", tmp_path / "other", seed=9, dtype=torch.bfloat16), seed=9)
    table = load_file(one / "model.safetensors")["model.embed_tokens.weight"]
    _save(other, load_file(other / "model.safetensors") | {"model.embed_tokens.weight": table})
    for directory in (one, other):
        words = {f"w{index}": index for index in range(128)}
        Tokenizer(WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    spec = deployment(one, dtype="bfloat16", apps={"acme": {"first": "base", "second": "second"}})
    second = replace(spec.bases["base"], name="second", source=source(other))
    result = compiled(replace(spec, bases={**spec.bases, "second": second}), tmp_path / "zoo")
    assert result.zoo.tensors_bytes() == _least_bytes(one, other)
    plan = result.plan
    first, last = (plan.paths[chain.path].blocks for chain in plan.chains)
    assert [mine == theirs for mine, theirs in zip(first, last, strict=True)] == [True] + [False] * (2 * LAYERS + 1)
    assert [segment.count for segment in plan.segments if len(segment.chains) == 2] == [1]
    tokenizers = {chain.assets["tokenizer.json"] for chain in plan.chains}
    assert len(tokenizers) == 1
    stored = [path for path in result.zoo.root.rglob("*") if path.is_file() and "vocab" in path.read_text("latin-1")]
    assert [path.name for path in stored] == list(tokenizers)


@pytest.fixture(scope="module")
def upscaled(base, tmp_path_factory):
    """Six layers out of four: the middle ones twice (SOLAR, arXiv 2312.15166)."""
    return _copy(base, tmp_path_factory.mktemp("up") / "upscaled", _stacked((0, 1, 2, 1, 2, 3)), num_hidden_layers=6)


def _stacked(order: tuple[int, ...]):
    def change(tensors):
        outside = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.")}
        for target, layer in enumerate(order):
            prefix = f"model.layers.{layer}."
            outside |= {
                f"model.layers.{target}.{name.removeprefix(prefix)}": tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
        return outside

    return change


def test_a_depth_upscaled_model_stores_nothing_of_its_own(base, upscaled, tmp_path):
    result = _compiled(base, {"upscaled": upscaled}, tmp_path / "zoo")
    assert result.zoo.tensors_bytes() == _least_bytes(base, upscaled) == _least_bytes(base)
    plan = result.plan
    chain = plan.chains[plan.models["upscaled"].chain]
    blocks = plan.paths[chain.path].blocks
    assert blocks[3:7] == blocks[7:11], "the two middle layers occur twice"
    assert set(blocks) == set(plan.paths[plan.chains[plan.models["base"].chain].path].blocks)
    assert sum(plan.kv_groups[kv.group].layers for kv in chain.kv) == 6, "each occurrence has KV slots of its own"


def test_a_depth_upscaled_model_answers_as_it_does_alone(base, upscaled, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(base, models / "base")
    shutil.copytree(upscaled, models / "upscaled")
    spec = deployment(models / "base", {"upscaled": ("base", models / "upscaled")})
    result = compiled(spec, tmp_path / "zoo")
    reports = verify(result.plan, result.zoo, root=models, prompts=5, output_tokens=8)
    assert [report.model for report in reports] == ["base", "upscaled"]
    assert all(report.passed and report.max_error < 2e-4 for report in reports), reports
