"""JSON from a file that somebody may have edited -> plain data, or :class:`StrictJsonError`.

Python's parser accepts more than JSON (NaN, duplicate keys, numbers that become infinite) and fails
in several ways (recursion, encoding, very long integers). Here everything that is not plain JSON
with a single reading is refused.
"""

from __future__ import annotations

import json
import math
from typing import Any


class StrictJsonError(ValueError):
    """The bytes are not JSON with a single reading; the message says why and where."""


def parse_strict_json(data: bytes) -> Any:
    """Return the value that ``data`` (UTF-8, no byte order mark) denotes."""
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_finite,
        )
    except StrictJsonError:
        raise
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise StrictJsonError("brackets are nested too deeply") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise StrictJsonError(f"{error.msg.removesuffix(' at')} at {where}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise StrictJsonError("a number has too many digits") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise StrictJsonError(f"the key {key[:80]!r} stands twice in one object")
        found[key] = value
    return found


def _constant(text: str) -> Any:
    raise StrictJsonError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError(f"the number {text[:40]} is out of range")
    return value
