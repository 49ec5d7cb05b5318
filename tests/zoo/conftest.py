"""Tensors of a few bytes, and zoos that hold them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from blockc.ir import TensorRef, tensor_digest
from blockc.ir.tensor import DTYPE_BYTES
from blockc.zoo import Zoo

Tensor = tuple[TensorRef, bytes]


def make_tensor(seed: int, *, dtype: str = "BF16", shape: tuple[int, ...] = (4, 8)) -> Tensor:
    data = random.Random(seed).randbytes(math.prod(shape) * DTYPE_BYTES[dtype])
    return TensorRef(digest=tensor_digest(dtype, shape, data), dtype=dtype, shape=shape), data


@pytest.fixture
def tensor() -> Callable[..., Tensor]:
    return make_tensor


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "zoo", create=True)


@pytest.fixture
def packs(zoo: Zoo) -> Callable[[], list[Path]]:
    """The zoo's packs, the only files that count."""
    return lambda: sorted((zoo.root / "packs").glob("*.safetensors"))
