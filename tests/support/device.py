"""The device that numerics are tested on: `BLOCKC_TEST_DEVICE=cuda pytest tests/numeric tests/runtime`."""

from __future__ import annotations

import os

DEVICE = os.environ.get("BLOCKC_TEST_DEVICE", "cpu")
