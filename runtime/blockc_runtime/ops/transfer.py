"""Small tensors from the host to where ops run.

On CUDA by a copy from pinned memory, which is queued behind what the device has to do and not waited for: a copy from
any other memory waits until the device has nothing left to do. Torch's allocator keeps the memory until it is copied.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor


def moved(host: Tensor, device: torch.device) -> Tensor:
    """``host`` on ``device``; itself on a CPU."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """``[n]`` of int64."""
    host = torch.frombuffer(array("q", numbers), dtype=torch.int64) if len(numbers) else torch.zeros(0).long()
    return moved(host, device)
