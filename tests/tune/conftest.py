"""A configuration is traced once for all tests here: they are about files."""

from __future__ import annotations

from typing import Any

import pytest

from blockc.trace import TracedModel, trace

_KNOWN: dict[tuple[str, str], TracedModel] = {}


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch):
    def remembered(config: Any, *, dtype: str) -> TracedModel:
        key = (config.to_json_string(use_diff=False), dtype)
        if key not in _KNOWN:
            _KNOWN[key] = trace(config, dtype=dtype)
        return _KNOWN[key]

    monkeypatch.setattr("blockc.tune.traced.trace", remembered)
