"""Tensors of the zoo as torch tensors."""

from __future__ import annotations

import numpy as np
import torch

from blockc.delta.integers import dequantized
from blockc.ir import DTYPE_NAME, QuantizedRef, TensorRef
from blockc.zoo import Zoo


def read_tensor(zoo: Zoo, ref: TensorRef) -> torch.Tensor:
    """A copy, so that nothing stays mapped; of a quantised matrix what it stands for. Raises `DiagnosticError`."""
    if isinstance(ref, QuantizedRef):
        codes, scale, *shift = (read_tensor(zoo, part).flatten(0, -2) for part in ref.parts)
        value = dequantized(codes, scale, shift[0] if shift else None, bits=ref.bits, group=ref.group)
        return value.to(getattr(torch, DTYPE_NAME[ref.dtype])).reshape(ref.shape)
    data = np.frombuffer(zoo.tensor(ref.digest).data, dtype=np.uint8).copy()
    return torch.from_numpy(data).view(getattr(torch, DTYPE_NAME[ref.dtype])).reshape(ref.shape)
