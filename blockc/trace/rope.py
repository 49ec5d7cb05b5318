"""Rotary frequencies that change with the length of a request are fixed where no request is long enough to change them.

``longrope`` (arXiv 2402.13753) has one set of frequencies for requests up to the length of pretraining and another
beyond. A step holds requests of both kinds, and a cached key cannot be turned again, so only the first set is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from blockc.trace.attention import UntraceableError

LONGROPE = "longrope"


@contextmanager
def short_frequencies(model: nn.Module, max_model_len: int | None) -> Iterator[None]:
    """Within, the model's longrope modules do not look at lengths.

    Raises :class:`UntraceableError` if a request of ``max_model_len`` tokens (None: of any length) needs the other set.
    """
    modules: list[Any] = [module for module in model.modules() if getattr(module, "rope_type", None) == LONGROPE]
    for module in modules:
        first = int(module.config.rope_parameters["original_max_position_embeddings"])
        if max_model_len is None or max_model_len > first:
            raise UntraceableError(
                f"its rotary frequencies are others for requests of more than {first} tokens (longrope): "
                f"state `max_model_len = {first}` or less"
            )
    for module in modules:
        module.rope_type = "default"
    try:
        yield
    finally:
        for module in modules:
            module.rope_type = LONGROPE
