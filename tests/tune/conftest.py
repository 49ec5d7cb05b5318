"""A configuration is traced once for all tests here: they are about files."""

from __future__ import annotations

from typing import Any

import pytest

from blockc.trace import Head, TracedModel, trace

_KNOWN: dict[tuple[str, str, Head], TracedModel] = {}


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch):
    def remembered(config: Any, *, dtype: str, head: Head) -> TracedModel:
        key = (config.to_json_string(use_diff=False), dtype, head)
        if key not in _KNOWN:
            _KNOWN[key] = trace(config, dtype=dtype, head=head)
        return _KNOWN[key]

    monkeypatch.setattr("blockc.tune.traced.trace", remembered)
