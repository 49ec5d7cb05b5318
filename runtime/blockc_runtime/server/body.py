"""Reads request bodies, up to a limit.

In: an HTTP request. Out: its bytes, or 413. Invariant: no more than the limit is ever held.
"""

from __future__ import annotations

from fastapi import Request

from blockc_runtime.server.errors import ApiError


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return the whole body. Raises 413 as soon as it is known to be too long."""
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limit_bytes:
        raise _too_large(limit_bytes)
    parts, total_bytes = [], 0
    async for part in request.stream():
        total_bytes += len(part)
        if total_bytes > limit_bytes:
            raise _too_large(limit_bytes)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit_bytes: int) -> ApiError:
    # The rest of the body stays unread, so the connection cannot be used again.
    return ApiError(413, f"a body has at most {limit_bytes} bytes", headers={"Connection": "close"})
