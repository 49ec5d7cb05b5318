"""Each configuration is traced once in a test process. Tests of tracing itself call `blockc.trace.trace`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blockc.trace import Head, TracedModel, trace
from blockc.trace.model import TOKENS
from blockc.tune import traced

# Tests give configurations as they are and as files have them.
_OF_THE_FILE = ("dtype", "_name_or_path", "transformers_version")
_KNOWN: dict[Any, TracedModel] = {}


def once(config: Any, *, dtype: str, head: Head = TOKENS, max_model_len: int | None = None) -> TracedModel:
    """As `blockc.trace.trace`."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _OF_THE_FILE}
    key = (json.dumps(fields, sort_keys=True, default=str), dtype, head, max_model_len)
    if key not in _KNOWN:
        _KNOWN[key] = trace(config, dtype=dtype, head=head, max_model_len=max_model_len)
    return _KNOWN[key]


@contextmanager
def traced_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced, "trace", once)
        yield
