"""Work on a device beside other work, within what is recorded as a graph.

In: calls, of which some need not wait for others. Out: on CUDA two branches of a graph, which meet again at `join`;
elsewhere the same calls one after the other. Invariant: what is called within the branch runs behind what was called
before it was made, and before what is called behind `join`.
"""

from __future__ import annotations

from functools import cache
from types import TracebackType

import torch


class Branch:
    """It leaves the stream in use where it is made; what is called within a ``with`` of it goes to a stream of its own.

    Memory that is taken there is given back there, to the next branch, which begins behind whatever has joined.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            _side(self._device).wait_stream(torch.cuda.current_stream(self._device))

    def __enter__(self) -> None:
        if self._device is not None:
            self._within = torch.cuda.stream(_side(self._device))
            self._within.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device is not None:
            self._within.__exit__(kind, error, trace)

    def join(self) -> None:
        """What is called from now on waits for it."""
        if self._device is not None:
            torch.cuda.current_stream(self._device).wait_stream(_side(self._device))


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """Of a higher priority: what is short begins before what fills the device."""
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
