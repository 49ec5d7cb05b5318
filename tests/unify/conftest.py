"""Tracing takes most of the time here and depends on nothing but configuration and dtype: each is traced once."""

from __future__ import annotations

import json

import pytest

from blockc.trace import trace
from blockc.tune import traced


@pytest.fixture(autouse=True, scope="session")
def traced_once():
    known = {}

    def once(config, *, dtype):
        key = (json.dumps(config.to_dict(), sort_keys=True, default=str), dtype)
        if key not in known:
            known[key] = trace(config, dtype=dtype)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced, "trace", once)
        yield
