"""The files that the benchmark of llama.cpp makes: what is in them, where, and turned as llama.cpp turns it."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch.testing import assert_close

from benchmarks.fleet import Shape
from benchmarks.gguf import reordered, write

SHAPE = Shape(hidden=32, layers=1, heads=4, kv_heads=2, intermediate=64, vocab=16)


def test_tensors_are_where_the_head_of_a_file_says(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5, dtype=torch.bfloat16), "b": torch.randn(7), "c": torch.randn(2, 4).half()}
    write(tmp_path / "x.gguf", {"n": 3, "e": 1e-6, "words": ["w0", "w1"], "scores": [0.0, 1.0]}, tensors)
    data = bytearray((tmp_path / "x.gguf").read_bytes())
    assert data[:4] == b"GGUF"
    assert struct.unpack_from("<IQQ", data, 4) == (3, 3, 4)
    head = data.index(b"\x01\0\0\0\0\0\0\0a")
    begins = []
    for name, tensor in tensors.items():
        text, axes = struct.unpack_from("<Q1sI", data, head)[1:]
        *sizes, kind, begin = struct.unpack_from(f"<{axes}QIQ", data, head + 13)
        assert (text, sizes[::-1]) == (name.encode(), list(tensor.shape))
        assert {30: torch.bfloat16, 0: torch.float32, 1: torch.float16}[kind] is tensor.dtype
        begins.append(begin)
        head += 13 + struct.calcsize(f"<{axes}QIQ")
    start = head + -head % 32
    for begin, tensor in zip(begins, tensors.values(), strict=True):
        assert begin % 32 == 0
        found = torch.frombuffer(data, dtype=tensor.dtype, count=tensor.numel(), offset=start + begin)
        assert torch.equal(found.view(tensor.shape), tensor)


def test_rotated_neighbours_of_reordered_rows_are_rotated_halves() -> None:
    x, cos, sin = torch.randn(SHAPE.hidden), torch.randn(4), torch.randn(4)

    def scores(queries: torch.Tensor, keys: torch.Tensor, pairs: str) -> torch.Tensor:
        turned = []
        for rows, heads in ((queries, SHAPE.heads), (keys, SHAPE.kv_heads)):
            values = (rows @ x).view(heads, 8)
            one, other = (values[:, :4], values[:, 4:]) if pairs == "halves" else (values[:, ::2], values[:, 1::2])
            turned.append(torch.cat([one * cos - other * sin, other * cos + one * sin], 1))
        return turned[0].view(2, 2, 8) @ turned[1].view(2, 8, 1)

    queries, keys = torch.randn(32, 32), torch.randn(16, 32)
    own = reordered("q_proj", queries, SHAPE), reordered("layers.0.k_proj", keys, SHAPE)
    assert_close(scores(*own, "neighbours"), scores(queries, keys, "halves"))
    assert torch.equal(reordered("v_proj", keys, SHAPE), keys)
