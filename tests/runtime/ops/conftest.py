"""Kernels of Triton's run in its interpreter where there is no device to compile them for."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
