"""The digest of what a spec means.

In: a deployment. Out: the same with its digest. Invariant: comments, spans, the order of
declarations, the folder in which the spec lies and the process's hash seed do not change it; any
resolved value does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path

from blockc.diag import Span
from blockc.spec.deployment import Deployment, LocalSource

_VERSION = "blockc-spec-1"
_NOT_MEANING = {"digest", "spec_file"}
# Where something is said is no meaning. These stood in the first digests as null where nothing is said, and still do.
_NULL_SPANS = {"quantize_span", "share_span", "sides_limit_span"}


def deployment_digest(deployment: Deployment) -> Deployment:
    """Return ``deployment`` with ``digest`` set, in hexadecimal."""
    document = {"version": _VERSION, "deployment": _canonical(deployment)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(text.encode("ascii")).hexdigest()
    return replace(deployment, digest=digest)


def _canonical(value: object) -> object:
    """Return a value as JSON without order: a deployment's tuples are sets, unless their field is ordered."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, LocalSource):
        return {"local": value.written}
    if isinstance(value, tuple | list):
        items = [_canonical(item) for item in value]
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    assert is_dataclass(value), f"a deployment holds no {type(value).__name__}"
    document: dict[str, object] = {}
    for field in fields(value):
        item = getattr(value, field.name)
        unsaid = "later" in field.metadata and item == field.default
        if not (unsaid or isinstance(item, Span | Path) or field.name in _NOT_MEANING or _is_place(field.name)):
            ordered = [_canonical(part) for part in item] if "ordered" in field.metadata else None
            document[field.name] = _canonical(item) if ordered is None else ordered
    return document


def _is_place(name: str) -> bool:
    return name.endswith("_span") and name not in _NULL_SPANS
