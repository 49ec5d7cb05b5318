"""Names and patterns of an adapter's configuration, matched as PEFT matches them, in bounded time.

In: lists of names and regular expressions, from files that nobody has checked. Out: whether a module's path matches.
Invariant: all that one configuration asks for takes at most `SECONDS`; beyond that `SlowPatternError` is raised. A
pattern that Python's ``re`` and the ``regex`` package, which has timeouts, read in two ways is no pattern.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import regex

# One configuration's patterns: thousands of modules take milliseconds, backtracking without end takes this.
SECONDS = 1.0
MOST_PATTERNS, MOST_CHARACTERS = 4096, 1 << 14  # the latter of patterns that are no plain paths
_PLAIN = re.compile(r"(\^?)((?:[\w.-]|\\\.)+)\$?")
# A brace that is no repetition is a literal to `re` and fuzzy matching to `regex`; so are classes in classes.
_AMBIGUOUS = re.compile(r"(?<!\\)\{(?!\d+(,\d*)?\}|,\d+\})|\[[^\]]*\[[:.=]")

Names = frozenset[str] | str  # names, each a path or its end; or a pattern for the whole path


class SlowPatternError(Exception):
    """The patterns of a configuration take longer than they may."""


class Matcher:
    """Patterns of one configuration, on one budget of time."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._left = seconds
        self._compiled: dict[str, regex.Pattern[str]] = {}

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Whatever is done inside counts."""
        started = time.perf_counter()
        try:
            yield
        except TimeoutError as error:
            raise SlowPatternError from error
        finally:
            self._left -= time.perf_counter() - started
        if self._left < 0:
            raise SlowPatternError

    def compile(self, pattern: str) -> regex.Pattern[str]:
        """Raises `re.error` if it is none, or one that can be read in two ways."""
        if pattern not in self._compiled:
            with self.timed():
                if _AMBIGUOUS.search(pattern):
                    raise re.error("it can be read in two ways", pattern)
                try:
                    re.compile(pattern)
                    self._compiled[pattern] = regex.compile(pattern)
                except (regex.error, RecursionError, OverflowError, MemoryError) as error:
                    raise re.error(str(error), pattern) from error
        return self._compiled[pattern]

    def match(self, pattern: str, text: str) -> regex.Match[str] | None:
        """As ``re.match``. Raises `SlowPatternError`."""
        compiled = self.compile(pattern)
        with self.timed():
            return compiled.match(text, timeout=self._left)

    def matches(self, names: Names, module: str) -> bool:
        """Whether a path is named by a list (whole, or its end) or by a pattern (whole)."""
        if isinstance(names, str):
            compiled = self.compile(names)
            with self.timed():
                return compiled.fullmatch(module, timeout=self._left) is not None
        return any(end in names for end in _ends(module))

    def lies_in(self, names: Collection[str], module: str) -> bool:
        """Whether a module is one of these, or a part of one."""
        return any(self.match(inside(name), module) is not None for name in names)

    def layer_of(self, patterns: Collection[str], module: str) -> int | None:
        """The number of the layer that a module lies in, in a list of layers of one of these names, or of any."""
        for pattern in map(layers, patterns) if patterns else (_ANY_LAYERS,):
            if found := self.match(pattern, module):
                return int(found["index"])
        return None


class Keyed:
    """A mapping from patterns to values: a path has the value of the first pattern that matches its end.

    Most patterns are plain paths, of which there may be one for every module: they are looked up, not tried.
    """

    def __init__(self, values: Mapping[str, float], matcher: Matcher) -> None:
        self._values, self._matcher = list(values.values()), matcher
        self._patterns: list[tuple[int, str]] = []
        # Lengths of what stands between dots -> what stands there -> the patterns that say so, the first one first.
        self._plain: dict[tuple[int, ...], dict[tuple[str, ...], list[_Path]]] = {}
        for index, key in enumerate(values):
            if (plain := _PLAIN.fullmatch(key)) is not None:
                path = _Path(index=index, text=plain[2], anchored=bool(plain[1]))
                parts = tuple(path.text.replace("\\.", ".").split("."))
                self._plain.setdefault(tuple(map(len, parts)), {}).setdefault(parts, []).append(path)
            else:
                self._patterns.append((index, key))

    def get(self, module: str, default: float) -> float:
        """The value at a path. Raises `SlowPatternError`."""
        with self._matcher.timed():
            found = min(self._looked_up(module), default=len(self._values))
        for index, pattern in self._patterns:
            if index < found and self._matcher.match(end(pattern), module):
                found = index
        return self._values[found] if found < len(self._values) else default

    def _looked_up(self, module: str) -> Iterator[int]:
        for lengths, known in self._plain.items():
            at = len(module) - sum(lengths) - len(lengths) + 1
            if at == 0 or (at > 0 and module[at - 1] == "."):
                tail = module[at:]
                paths = known.get(tuple(_cut(tail, lengths)), ())
                yield from (path.index for path in paths if path.is_end(tail, whole=at == 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """A pattern that is a path: a dot in it matches anything, an escaped one itself."""

    index: int
    text: str
    anchored: bool

    def is_end(self, tail: str, *, whole: bool) -> bool:
        """Of a path whose end is equal to it but for dots."""
        if self.anchored and not whole:
            return False
        return "\\" not in self.text or re.fullmatch(self.text, tail) is not None


# What PEFT makes of a pattern that means the end of a path, a module with its parts, or a list of layers.
def end(pattern: str) -> str:
    """For `rank_pattern` and `alpha_pattern`."""
    return rf"(.*\.)?({pattern})$"


def inside(name: str) -> str:
    """For `modules_to_save`."""
    return rf"(^|.*\.){name}($|\..*)"


def layers(pattern: str) -> str:
    """For `layers_pattern`."""
    return rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\."


_ANY_LAYERS = r".*?\.[^.]*\.(?P<index>\d+)\."


def is_plain(pattern: str) -> bool:
    """Whether it is a path, where only dots match anything."""
    return _PLAIN.fullmatch(pattern) is not None


def _ends(module: str) -> Iterator[str]:
    yield module
    at = module.find(".")
    while at >= 0:
        yield module[at + 1 :]
        at = module.find(".", at + 1)


def _cut(text: str, lengths: tuple[int, ...]) -> Iterator[str]:
    at = 0
    for length in lengths:
        yield text[at : at + length]
        at += length + 1
