"""Reading weights and fine-tunes beside the steps, by one thread.

In: what reads tensors to a device. Out: the tensors, once they are there, or why they cannot be. Invariant: a step is
not waited for, unless that is asked for, and does not wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from blockc.diag import DiagnosticError

_T = TypeVar("_T")


class ReadStream:
    """On CUDA a stream that steps do not use. Untested on hardware."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None

    def run(self, read: Callable[[], _T], *, behind_steps: bool = False) -> _T:
        """What ``read`` returns, done on the device. ``behind_steps``: it may write to what steps have let go."""
        with torch.inference_mode():
            if self._device.type != "cuda":
                return read()
            # One for good: memory that a stream's tensors leave is given out again on that stream alone.
            stream = self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            if behind_steps:
                stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                found = read()
            stream.synchronize()
            return found


def problem_of(error: Exception) -> str:
    """What to tell whoever waits for what could not be read."""
    return str(error) if isinstance(error, DiagnosticError) else f"{type(error).__name__}: {error}"[:500]
