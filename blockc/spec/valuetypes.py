"""The types of attributes: what a value must be, and what it becomes.

In: an evaluated :class:`~blockc.spec.values.Value`. Out: plain data (int, Fraction, str, a source, ...) in base
units, or None after a report. Invariant: a type never guesses; a value that could mean two things is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from blockc.diag import Diagnostics, Span
from blockc.spec.deployment import HubSource, LocalSource, Source
from blockc.spec.expand import Folder
from blockc.spec.suggest import did_you_mean
from blockc.spec.units import (
    BYTES,
    DURATION,
    NUMBER,
    REQUEST_RATE,
    TOKEN_RATE,
    TOKENS,
    Dimension,
    Quantity,
    dimension_name,
    example_of,
    format_number,
)
from blockc.spec.values import Call, Range, Secret, Value, Word, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The named declarations of a run, and which of them something refers to."""

    spans: Mapping[str, Mapping[str, Span]]  # kind -> name -> where
    used: set[tuple[str, str]] = field(default_factory=set)

    def names(self, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of declarations of these kinds."""
        return tuple(name for kind in kinds for name in self.spans.get(kind, {}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where a value stands: for messages, relative paths and references."""

    diags: Diagnostics
    declared: Declared
    folder: Folder
    where: str  # "`rate` of `traffic`"

    def wrong_type(self, expected: str, value: Value, *, help_: str | None = None) -> None:
        """Report BC104."""
        message = f"{self.where}: expected {expected}, found {describe(value)}"
        self.diags.report("BC104", message, at=value.span, help=help_)

    def out_of_range(self, message: str, value: Value, *, help_: str | None = None) -> None:
        """Report BC109."""
        self.diags.report("BC109", f"{self.where}: {message}", at=value.span, help=help_)

    def not_in_effect(self, what: str, span: Span) -> None:
        """Report BC804."""
        report_not_in_effect(self.diags, what, span)


def report_not_in_effect(diags: Diagnostics, what: str, span: Span) -> None:
    """Report that something is understood and changes nothing."""
    message = f"{what} is accepted and nothing acts on it yet"
    help_ = "the plan is the same without it; `# blockc: allow(BC804)` on its line says that you know"
    diags.report("BC804", message, at=span, help=help_)


class ValueType(Protocol):
    """What an attribute holds."""

    @property
    def expects(self) -> str:
        """The type as a phrase for messages: ``a size such as `16GiB```."""

    def convert(self, value: Value, context: Context) -> object | None:
        """Return plain data, or None after a report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A quantity of one dimension. Becomes a Fraction in base units, or an int if ``whole``."""

    dimension: Dimension
    whole: bool = False
    plain_too: bool = False  # a bare number is clear enough: `max_model_len = 2048`
    above: Fraction | None = None
    least: Fraction | None = None
    most: Fraction | None = None

    @property
    def expects(self) -> str:
        if self.dimension == NUMBER:
            return "a whole number" if self.whole else "a number"
        return f"a {dimension_name(self.dimension)} such as `{example_of(self.dimension)}`"

    def convert(self, value: Value, context: Context) -> int | Fraction | None:
        data = value.data
        plain = isinstance(data, Quantity) and data.dimension == NUMBER and data.unit.symbol == ""
        fits = isinstance(data, Quantity) and data.dimension == self.dimension
        if not isinstance(data, Quantity) or not (fits or (plain and self.plain_too)):
            context.wrong_type(self.expects, value, help_=self._fitting(value))
            return None
        number = data.number
        if (self.above is not None and number <= self.above) or (
            self.least is not None and number < self.least
        ):
            bound, word = (self.above, "more than") if self.above is not None else (self.least, "at least")
            assert bound is not None, "one of the two was compared"
            context.out_of_range(f"must be {word} {format_number(bound)}, found `{data}`", value)
            return None
        if self.most is not None and number > self.most:
            context.out_of_range(f"must be at most {self._printed(self.most)}, found `{data}`", value)
            return None
        if not self.whole:
            return number
        if number.denominator != 1:
            context.out_of_range(f"must be a whole number, found `{data}`", value)
            return None
        return number.numerator

    def _printed(self, number: Fraction) -> str:
        return f"{format_number(number)}{_BASE_UNIT.get(self.dimension, '')}"

    def _fitting(self, value: Value) -> str | None:
        data = value.data
        if isinstance(data, str) and self.dimension != NUMBER:
            return f"quantities are written without quotes: `{example_of(self.dimension)}`"
        if not isinstance(data, Quantity):
            return None
        written = format_number(data.number / data.unit.factor)
        if self.dimension == BYTES and data.dimension == NUMBER:
            return f"write `{written}GiB`, `{written}GB` or `{written}B`"
        same_number = _FITTING_UNIT.get(self.dimension)
        return f"write `{written}{same_number}`" if same_number is not None else None


_BASE_UNIT = {BYTES: "B", DURATION: "s", TOKENS: "tok", REQUEST_RATE: "rps", TOKEN_RATE: "tok/s"}
_FITTING_UNIT = {
    BYTES: "GiB",
    DURATION: "s",
    TOKENS: "tok",
    REQUEST_RATE: "rps",
    TOKEN_RATE: "tok/s",
    NUMBER: "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A word of a setting; ``meaning`` is what it becomes. Exactly one status holds."""

    word: str
    meaning: str
    in_effect: bool = True
    supported: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOf:
    """One of some words. Becomes the word's meaning."""

    choices: tuple[Choice, ...]
    noun: str = "value"

    @property
    def expects(self) -> str:
        words = [f"`{choice.word}`" for choice in self.choices if choice.supported]
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]

    def convert(self, value: Value, context: Context) -> str | None:
        data = value.data
        if not isinstance(data, Word):
            quoted = isinstance(data, str) and any(choice.word == data for choice in self.choices)
            help_ = f"write `{data}`, without quotes" if quoted else None
            context.wrong_type(self.expects, value, help_=help_)
            return None
        choice = next((choice for choice in self.choices if choice.word == data.name), None)
        if choice is None:
            help_ = did_you_mean(data.name, [c.word for c in self.choices if c.supported])
            context.out_of_range(
                f"no {self.noun} `{data.name}`; expected {self.expects}", value, help_=help_
            )
            return None
        if not choice.supported:
            message = f"{context.where}: `{data.name}` is not supported yet"
            help_ = f"supported are {self.expects}"
            context.diags.report("BC208", message, at=value.span, help=help_)
            return None
        if not choice.in_effect:
            context.not_in_effect(f"{context.where}: `{data.name}`", value.span)
        return choice.meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A string. Becomes a str."""

    expects: str = "a string"

    def convert(self, value: Value, context: Context) -> str | None:
        if not isinstance(value.data, str):
            help_ = None
            if isinstance(value.data, Word):
                help_ = f'a string is written in quotes: "{value.data.name}"'
            context.wrong_type(self.expects, value, help_=help_)
            return None
        if looks_secret(value.data):
            report_secret(value, context)
            return None
        if any(ord(character) < 32 or ord(character) == 127 for character in value.data):
            context.out_of_range("a control character in a string", value)
            return None
        return value.data


_SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}"
    r"|glpat-[A-Za-z0-9_-]{16,}|xox[abpr]-[A-Za-z0-9-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|[a-z]+://[^/\s:@]+:[^/\s:@]+@"
)


def looks_secret(text: str) -> bool:
    """Return whether a string has the form of a well-known kind of token, or is a URL with a password."""
    return _SECRETS.search(text) is not None


def report_secret(value: Value, context: Context) -> None:
    """Report BC602, without repeating the secret."""
    message = f"{context.where}: this looks like a secret in plain text"
    help_ = 'write `secret("NAME")`: the runtime looks it up, and it never enters a plan'
    context.diags.report("BC602", message, at=value.span, help=help_)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretName:
    """``secret("NAME")``. Becomes the name."""

    expects: str = '`secret("NAME")`'

    def convert(self, value: Value, context: Context) -> str | None:
        if isinstance(value.data, Secret):
            return value.data.name
        if isinstance(value.data, str):
            report_secret(value, context)
            return None
        context.wrong_type(self.expects, value)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeOfLayers:
    """``24..31``. Becomes a pair."""

    expects: str = "a range such as `24..31`"

    def convert(self, value: Value, context: Context) -> tuple[int, int] | None:
        if not isinstance(value.data, Range):
            context.wrong_type(self.expects, value)
            return None
        if not 0 <= value.data.first <= value.data.last:
            context.out_of_range(f"{describe(value)} is empty or negative", value)
            return None
        return value.data.first, value.data.last


@dataclass(frozen=True, slots=True, kw_only=True)
class Many:
    """A list. Becomes a tuple."""

    of: ValueType

    @property
    def expects(self) -> str:
        return f"a list of {self.of.expects}"

    def convert(self, value: Value, context: Context) -> tuple[object, ...] | None:
        if not isinstance(value.data, tuple):
            context.wrong_type(self.expects, value, help_="write it in brackets: `[...]`")
            return None
        items = [self.of.convert(item, context) for item in value.data]
        return None if any(item is None for item in items) else tuple(items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A reference to a declaration: an identifier, or a string if it is computed. Becomes its name."""

    kinds: tuple[str, ...]

    @property
    def expects(self) -> str:
        return "the name of a " + " or ".join(_SPOKEN.get(kind, kind) for kind in self.kinds)

    def convert(self, value: Value, context: Context) -> str | None:
        name = value.data.name if isinstance(value.data, Word) else value.data
        if not isinstance(name, str):
            context.wrong_type(self.expects, value)
            return None
        for kind in self.kinds:
            if name in context.declared.spans.get(kind, {}):
                context.declared.used.add((kind, name))
                return name
        self._unknown(name, value, context)
        return None

    def _unknown(self, name: str, value: Value, context: Context) -> None:
        nouns = " or ".join(_SPOKEN.get(kind, kind) for kind in reversed(self.kinds))
        for kind in context.declared.spans:
            if name in context.declared.spans[kind]:
                message = f"{context.where}: `{name}` is a {kind}; expected {self.expects}"
                context.diags.report("BC104", message, at=value.span)
                return
        listing = f"a {nouns} is one of" if context.declared.names(self.kinds) else None
        help_ = did_you_mean(name, context.declared.names(self.kinds), listing=listing)
        context.diags.report(
            "BC101",
            f"no {nouns} named `{name}`",
            at=value.span,
            help=help_ or f"declare it, such as `{_EXAMPLE[self.kinds[0]].format(name=name)}`",
        )


_SPOKEN = {"finetune": "fine-tune"}
_EXAMPLE = {
    "base": 'base {name} : hf("./models/{name}") {{ }}',
    "profile": "profile {name} {{ slo {{ ttft_p95 = 500ms }} }}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A call with typed arguments, such as ``delta(max_error = 1%)``. Becomes its name."""

    name: str
    positional: tuple[ValueType, ...] = ()
    named: Mapping[str, ValueType] = field(default_factory=dict)
    in_effect: bool = True
    example: str = ""

    @property
    def expects(self) -> str:
        return f"`{self.example or self.name + '(...)'}`"

    def convert(self, value: Value, context: Context) -> str | None:
        arguments = self.arguments(value, context)
        if arguments is None:
            return None
        if not self.in_effect:
            context.not_in_effect(f"{context.where}: `{self.name}(...)`", value.span)
        return self.name

    def arguments(self, value: Value, context: Context) -> dict[str | int, object] | None:
        """Return the converted arguments by position or name."""
        call = value.data
        if not isinstance(call, Call) or call.name != self.name:
            context.wrong_type(self.expects, value)
            return None
        if len(call.positional) != len(self.positional):
            message = f"`{self.name}` takes {len(self.positional)} unnamed argument(s), "
            message += f"found {len(call.positional)}"
            context.diags.report("BC104", message, at=value.span, help=f"write {self.expects}")
            return None
        converted: dict[str | int, object | None] = {}
        for position, (type_, argument) in enumerate(
            zip(self.positional, call.positional, strict=True)
        ):
            converted[position] = type_.convert(argument, context)
        for name, argument in call.named.items():
            if name not in self.named:
                help_ = did_you_mean(name, self.named, listing="it takes")
                message = f"`{self.name}` takes no argument `{name}`"
                context.diags.report("BC102", message, at=argument.span, help=help_)
                converted[name] = None
            else:
                converted[name] = self.named[name].convert(argument, context)
        whole = {key: item for key, item in converted.items() if item is not None}
        return whole if len(whole) == len(converted) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Either:
    """One of several types, told apart by the form of the value: a call's name, else the first type."""

    otherwise: ValueType
    forms: tuple[Form, ...]

    @property
    def expects(self) -> str:
        return " or ".join([self.otherwise.expects, *(form.expects for form in self.forms)])

    def convert(self, value: Value, context: Context) -> object | None:
        if not isinstance(value.data, Call):
            for form in self.forms:
                if isinstance(value.data, Word) and value.data.name == form.name:
                    context.wrong_type(self.expects, value, help_=f"write {form.expects}")
                    return None
            return self.otherwise.convert(value, context)
        for form in self.forms:
            if form.name == value.data.name:
                return form.convert(value, context)
        names = [form.name for form in self.forms]
        help_ = did_you_mean(value.data.name, names)
        context.wrong_type(self.expects, value, help_=help_)
        return None


# --------------------------------------------------------------------- sources

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_HF = Form(
    name="hf", positional=(Text(),), named={"revision": Text()}, example='hf("./models/tiny")'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOf:
    """``hf("./dir")`` or ``hf("org/name", revision = "...")``; a bare string where ``bare``. Becomes a Source."""

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

    def _source(
        self, written: str, revision: str | None, value: Value, context: Context
    ) -> Source | None:
        if is_local(written):
            if revision is not None:
                context.out_of_range("a local folder has no revision", value, help_="remove `revision`")
                return None
            return local_source(written, context.folder)
        if not _REPOSITORY.fullmatch(written) or ".." in written:
            context.out_of_range(
                f'"{written[:60]}" is neither a local folder nor a repository of the hub',
                value,
                help_='a local folder starts with "./", "../", "/" or "~"; a repository is "org/name"',
            )
            return None
        return HubSource(repo=written, revision=revision)


def is_local(written: str) -> bool:
    """Return whether a source is a folder on disk rather than a repository of the hub."""
    return written in (".", "..", "~") or written.startswith(("./", "../", "/", "~/", "~"))


def local_source(written: str, folder: Folder) -> LocalSource:
    """Resolve a local source against the folder of the file that names it; symbolic links are kept."""
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
    import os

    return LocalSource(path=Path(os.path.normpath(folder.path / path)), written=shown)
