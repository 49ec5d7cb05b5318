"""Memory while a checkpoint is bound: that of a tensor, not that of the checkpoint."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from blockc.trace import TracedModel, trace
from tests.support.binding import bound


def _traced(layers: int, hidden: int) -> TracedModel:
    """A model with ``12.5 * hidden**2`` elements a layer."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    return trace(config, dtype="bfloat16")


def _save(traced: TracedModel, root: Path, dtype: torch.dtype) -> None:
    """Random weights in one shard per layer."""
    files: dict[str, list[str]] = {}
    for name in traced.loading.shapes:
        match = re.search(r"layers\.(\d+)\.", name)
        files.setdefault(f"model-{match[1] if match else 'rest'}.safetensors", []).append(name)
    root.mkdir()
    for file, names in files.items():
        save_file({name: torch.randn(traced.loading.shapes[name]).to(dtype) for name in names}, root / file)
    index = {name: file for file, names in files.items() for name in names}
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _status_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) * 1024


def _peak_bytes(traced: TracedModel, root: Path, zoo: Path) -> int:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status_bytes("VmRSS")
    _, reported = bound(traced, root, zoo)
    assert reported == {}
    return _status_bytes("VmHWM") - before


@pytest.mark.parametrize(
    ("layers", "hidden", "dtype"),
    [
        (8, 512, torch.float32),
        pytest.param(24, 512, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(14, 1024, torch.float32, marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_follow_the_size_of_the_checkpoint(layers, hidden, dtype, tmp_path):
    traced = _traced(layers, hidden)
    _save(traced, tmp_path / "model", dtype)
    total = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    largest = 4 * hidden * hidden * dtype.itemsize
    assert total > 20 * largest
    allowed = 4 * largest + (8 << 20)  # the file's pages, the cast copy, parts of it under test; the allocator's slack
    for _ in range(2):  # the second time the zoo holds it all
        assert _peak_bytes(traced, tmp_path / "model", tmp_path / "zoo") < allowed < total / 3
