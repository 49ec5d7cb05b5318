"""A configuration is traced once for all tests here."""

from __future__ import annotations

import pytest

from tests.support.traced_once import traced_once


@pytest.fixture(autouse=True, scope="module")
def _traced_once():
    with traced_once():
        yield
