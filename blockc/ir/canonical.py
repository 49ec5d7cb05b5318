"""Canonical JSON and the digests made of it: same meaning, same bytes, whatever the hash seed or the machine."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, ASCII only, no NaN. ``value`` is plain JSON data."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def json_digest(kind: str, value: Any) -> str:
    """SHA-256 (hex) of ``value``, separated from other kinds of thing by ``kind`` (such as ``"block v1"``)."""
    return hashlib.sha256(f"{kind}\n{canonical_json(value)}".encode()).hexdigest()
