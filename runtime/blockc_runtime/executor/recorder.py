"""What records the work of a function on a device, so that it can be done again as one launch.

In: a function that reads and writes the same memory each time. Out: CUDA's graphs, or None where nothing records.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from blockc_runtime.ops import triton_

# Benchmarks compare both ways.
_SWITCH = "BLOCKC_GRAPHS"

# (states or logits [1, B, F], which of the rows are finite [B] where logits are yielded)
Outputs = tuple[Tensor, Tensor | None]


class Recorder(Protocol):
    """Records what a function does on the device."""

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """(does it again, where its results then lie). ``run`` reads and writes the same memory each time."""


class CudaRecorder:
    """By CUDA graphs, which share one pool of memory: no two run at once.

    They are recorded on one stream: for each that multiplies, cuBLAS keeps memory for good.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, run: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """``run`` is called twice: kernels are compiled, and libraries make their workspaces, before it is recorded."""
        steps = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(steps)
        try:
            with torch.cuda.stream(self._stream):
                run()
        finally:  # whatever it has written, nobody overtakes it
            steps.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Fine-tunes, blocks and plans are read in threads of their own, which take memory meanwhile: were that
            # forbidden to them, their reading would fail, and so would this.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = run()
        except BaseException:
            # torch stays on the stream, and with the pool, of a recording that has failed.
            torch.cuda.set_stream(steps)
            self._pool = torch.cuda.graph_pool_handle()
            raise
        return graph.replay, outputs


def recorder_for(device: torch.device) -> Recorder | None:
    """None where every launch goes op by op: graphs read page tables on the device, as Triton's kernels do."""
    if device.type != "cuda" or triton_.problem() is not None or os.environ.get(_SWITCH) == "0":
        return None
    return CudaRecorder(device)
