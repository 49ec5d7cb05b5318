"""Numbers as people read them."""

from __future__ import annotations

_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def format_bytes(size_bytes: int) -> str:
    """Three significant digits at most: ``16.8 MiB``."""
    for unit, name in _BINARY:
        if size_bytes >= unit:
            value = size_bytes / unit
            return f"{value:.0f} {name}" if value >= 100 else f"{value:.1f} {name}"
    return f"{size_bytes} B"


def printable(text: str) -> str:
    """Names come from users: control characters, which terminals obey, are shown as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
