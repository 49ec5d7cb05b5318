"""Read one spec file into text.

In: a path. Out: a :class:`Source`, or None and a diagnostic (missing file, directory, invalid
UTF-8, NUL, byte order mark, too long). Invariant: a source's text is valid, has no NUL and at most
``MAX_BYTES`` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blockc.diag import Diagnostics, Span

MAX_BYTES = 4 << 20
"""Longer than any spec a person or a generator should write; keeps every later phase bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The text of one file. ``name`` is how messages call it."""

    name: str
    text: str

    @property
    def start(self) -> Span:
        """The first column of the file: where problems of the whole file are shown."""
        first_line = self.text.partition("\n")[0].rstrip("\r")
        end = 1 + len(first_line)
        return Span(file=self.name, start_line=1, start_column=1, end_line=1, end_column=end)


def read_source(path: Path, *, name: str, diags: Diagnostics, at: Span | None = None) -> Source | None:
    """Read ``path``; problems are reported at ``at`` (the import that named the file), if given."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        _report(diags, at, f"no file `{name}`", "check the path; it is relative to where you are")
        return None
    except IsADirectoryError:
        _report(
            diags,
            at,
            f"`{name}` is a directory",
            f"name the spec in it, such as `{name}/fleet.blk`",
        )
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _report(diags, at, f"cannot read `{name}`: {reason}", None)
        return None
    return decode_source(raw, name=name, diags=diags, at=at)


def decode_source(raw: bytes, *, name: str, diags: Diagnostics, at: Span | None = None) -> Source | None:
    """Turn the bytes of a file into text, or report why they are none."""
    if len(raw) > MAX_BYTES:
        limit = f"specs of more than {MAX_BYTES >> 20} MiB are not read"
        _report(diags, at, f"`{name}` is too long: {limit}", "use `for` instead of repetition")
        return None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        _report(diags, at, f"`{name}` is UTF-16; a spec is UTF-8", "save the file as UTF-8")
        return None
    if raw.startswith(b"\xef\xbb\xbf"):
        span = _at_byte(b"", name)
        message = f"`{name}` starts with a byte order mark"
        diags.report("BC001", message, at=span, help="save the file as UTF-8 without BOM")
        return None
    if (nul := raw.find(b"\0")) >= 0:
        span = _at_byte(raw[:nul], name)
        message = f"`{name}` contains a NUL byte; is it a text file?"
        diags.report("BC001", message, at=span, help="a spec is UTF-8 text")
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        span = _at_byte(raw[: error.start], name)
        message = f"`{name}` is not valid UTF-8: byte 0x{raw[error.start]:02x}"
        diags.report("BC001", message, at=span, help="save the file as UTF-8")
        return None
    return Source(name=name, text=text)


def _report(diags: Diagnostics, at: Span | None, message: str, help_: str | None) -> None:
    diags.report("BC003", message, at=at, help=help_)


def _at_byte(before: bytes, name: str) -> Span:
    """Return the span of the code point that follows the bytes ``before``."""
    text = before.decode("utf-8", errors="replace")
    line = text.count("\n") + 1
    column = len(text) - (text.rfind("\n") + 1) + 1
    return Span(file=name, start_line=line, start_column=column, end_line=line, end_column=column + 1)
