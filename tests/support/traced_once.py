"""Each configuration is traced once in a test process. Tests of tracing itself call `blockc.trace.trace`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blockc.trace import TracedModel, trace
from blockc.tune import traced

_KNOWN: dict[Any, TracedModel] = {}


@contextmanager
def traced_once() -> Iterator[None]:
    def once(config: Any, **settings: Any) -> TracedModel:
        key = (json.dumps(config.to_dict(), sort_keys=True, default=str), tuple(sorted(settings.items(), key=str)))
        if key not in _KNOWN:
            _KNOWN[key] = trace(config, **settings)
        return _KNOWN[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced, "trace", once)
        yield
