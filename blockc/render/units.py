"""Numbers and names as people read them."""

from __future__ import annotations

from blockc.ir.layout import format_bytes

__all__ = ["format_bytes", "printable"]


def printable(text: str) -> str:
    """Names come from users: control characters, which terminals obey, are shown as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
