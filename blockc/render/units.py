"""Numbers and names as people read them."""

from __future__ import annotations

from blockc.ir.layout import format_bytes

__all__ = ["counted", "format_bytes", "format_s", "printable", "short"]


def printable(text: str) -> str:
    """Names come from users: control characters, which terminals obey, are shown as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def format_s(seconds: float) -> str:
    """``0.41 ms``, ``12 ms``, ``1.3 s``: two digits, for times that are estimates."""
    value, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def counted(number: int, noun: str) -> str:
    """``1 block``, ``2 blocks``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def short(digest: str) -> str:
    """The beginning of a digest, enough to tell it from all others in sight. Other names are shown in full."""
    return digest[:12] if len(digest) == 64 else printable(digest)
