"""The type of attributes that say where a model lies: a folder, or a repository of the hub.

In: a string or ``hf(...)``. Out: a :class:`~blockc.spec.deployment.Source`; relative folders are
resolved against the folder of the file that names them. Nothing is looked up on disk here.
"""

# ruff: noqa: D102 - `expects` and `convert` are documented once, in ValueType
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from blockc.spec.context import Context
from blockc.spec.deployment import HubSource, LocalSource, Source
from blockc.spec.expand import Folder
from blockc.spec.forms import Form
from blockc.spec.values import Call, Value, shorten
from blockc.spec.valuetypes import Text

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_FILE = Form(name="file", positional=(Text(),), example='file("./probe.txt")')
_HF = Form(name="hf", positional=(Text(),), named={"revision": Text()}, example='hf("./models/tiny")')


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOf:
    """``hf(...)``, or a bare string where ``bare``. Becomes a Source."""

    bare: bool

    @property
    def expects(self) -> str:
        return 'a folder such as "./adapters/sql"' if self.bare else _HF.expects

    def convert(self, value: Value, context: Context) -> Source | None:
        if isinstance(value.data, str) and self.bare:
            text = Text().convert(value, context)
            return None if text is None else self._source(text, None, value, context)
        if not isinstance(value.data, Call):
            help_ = None
            if isinstance(value.data, str):
                help_ = f'write `hf("{value.data}")`'
            context.wrong_type(self.expects, value, help_=help_)
            return None
        arguments = _HF.arguments(value, context)
        if arguments is None:
            return None
        revision = arguments.get("revision")
        assert revision is None or isinstance(revision, str), "converted by Text"
        return self._source(str(arguments[0]), revision, value, context)

    def _source(self, written: str, revision: str | None, value: Value, context: Context) -> Source | None:
        if is_local(written):
            if revision is not None:
                context.out_of_range("a local folder has no revision", value, help_="remove `revision`")
                return None
            return local_source(written, context.folder)
        if not _REPOSITORY.fullmatch(written) or ".." in written:
            context.out_of_range(
                f'"{shorten(written)}" is neither a local folder nor a repository of the hub',
                value,
                help_='a folder starts with "./", "../", "/" or "~"; a repository is "org/name"',
            )
            return None
        return HubSource(repo=written, revision=revision)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileOf:
    """``file("./probe.txt")``. Becomes a LocalSource."""

    expects: str = '`file("./probe.txt")`'

    def convert(self, value: Value, context: Context) -> LocalSource | None:
        arguments = _FILE.arguments(value, context)
        return None if arguments is None else local_source(str(arguments[0]), context.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOf:
    """A file as a bare string. Becomes a LocalSource."""

    expects: str = 'a file such as "requests.csv"'

    def convert(self, value: Value, context: Context) -> LocalSource | None:
        text = Text().convert(value, context)
        return None if text is None else local_source(text, context.folder)


def is_local(written: str) -> bool:
    """Return whether a source is a folder on disk rather than a repository of the hub."""
    return written in (".", "..", "~") or written.startswith(("./", "../", "/", "~/", "~"))


def local_source(written: str, folder: Folder) -> LocalSource:
    """Resolve a folder against that of the file that names it; symbolic links are kept."""
    home_or_absolute = written.startswith(("/", "~"))
    path = Path(written)
    if written.startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError:  # no such user: the folder is then reported as missing
            path = Path("/") / written
    shown = written
    if not home_or_absolute and folder.written:
        shown = f"{folder.written}/{written}"
    return LocalSource(path=Path(os.path.normpath(folder.path / path)), written=shown)
