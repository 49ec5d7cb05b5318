"""Tensors of the zoo as torch tensors."""

from __future__ import annotations

import numpy as np
import torch

from blockc.ir import DTYPE_NAME, TensorRef
from blockc.zoo import Zoo


def read_tensor(zoo: Zoo, ref: TensorRef) -> torch.Tensor:
    """A copy, so that nothing stays mapped. Raises `DiagnosticError`."""
    data = np.frombuffer(zoo.tensor(ref.digest).data, dtype=np.uint8).copy()
    return torch.from_numpy(data).view(getattr(torch, DTYPE_NAME[ref.dtype])).reshape(ref.shape)
