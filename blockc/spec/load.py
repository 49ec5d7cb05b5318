"""Load a spec: read, parse, expand, validate, resolve.

In: a path, variables, environment. Out: a :class:`LoadResult`. Invariant: whatever the text is,
problems are diagnostics; nothing but spec files is read, and the same texts, variables and
environment give the same result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blockc.diag import DiagnosticError, Diagnostics, Label, Span
from blockc.diag.suppress import Suppression, report_unused, suppress
from blockc.spec import syntax
from blockc.spec.comments import suppressions
from blockc.spec.context import Declared
from blockc.spec.deployment import Deployment
from blockc.spec.evaluate import Evaluator
from blockc.spec.expand import ExpandedAttribute, ExpandedBlock, Expander, Folder, Turns
from blockc.spec.lint import JUDGED, tidy, unused
from blockc.spec.parser import parse
from blockc.spec.resolve import resolve
from blockc.spec.schema import ROOT, all_kinds
from blockc.spec.scope import Module, Scope, Usage
from blockc.spec.source import Source, read_source
from blockc.spec.suggest import did_you_mean
from blockc.spec.validate import label_of, validate
from blockc.spec.values import shorten

MAX_FILES = 64
"""Files of one spec; they import one another at most this deep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What a spec came to. ``deployment`` is None exactly if ``diagnostics`` has an error.

    ``sources`` maps the file names that spans use to their texts, for rendering. ``suppressions``
    are for the later phases of a command: see :func:`blockc.diag.suppress.suppress`.
    """

    deployment: Deployment | None
    diagnostics: Diagnostics
    sources: Mapping[str, str]
    suppressions: tuple[Suppression, ...]

    def require(self) -> Deployment:
        """Return the deployment, or raise :class:`DiagnosticError` with all that is wrong."""
        if self.deployment is None:
            raise DiagnosticError(self.diagnostics)
        return self.deployment


def load(path: Path, *, variables: Mapping[str, str] | None = None, environ: Mapping[str, str]) -> LoadResult:
    """Load the spec at ``path``.

    ``variables`` are the texts of ``--var name=text``; those of an imported file are named
    ``alias.name``. ``environ`` is what ``env(...)`` sees. Relative paths in a spec are relative to
    the file that holds them.
    """
    run = _Run(variables=dict(variables or {}), environ=environ)
    deployment = run.load(Path(path))
    remaining = suppress(run.diags, run.suppressions)
    if not run.diags.has_errors:
        report_unused(run.diags, run.suppressions, judged=JUDGED, diags=remaining)
    found = tidy(remaining)
    return LoadResult(
        deployment=None if found.has_errors else deployment,
        diagnostics=found,
        sources=run.sources,
        suppressions=tuple(run.suppressions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """An expanded file, as its importers see it."""

    module: Module
    name: str


@dataclass(slots=True, kw_only=True)
class _Run:
    variables: dict[str, str]
    environ: Mapping[str, str]
    diags: Diagnostics = field(default_factory=Diagnostics)
    sources: dict[str, str] = field(default_factory=dict)
    suppressions: list[Suppression] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    turns: Turns = field(default_factory=Turns)
    blocks: list[ExpandedBlock] = field(default_factory=list)
    loaded: dict[Path, _Loaded | None] = field(default_factory=dict)
    being_loaded: dict[Path, str] = field(default_factory=dict)
    known_variables: set[str] = field(default_factory=set)
    root: Path = field(default_factory=Path)

    def load(self, path: Path) -> Deployment | None:
        self.root = Path(os.path.abspath(path)).parent
        name = os.fspath(path)
        self.being_loaded[Path(os.path.abspath(path))] = name
        if self._file(path, name=name, prefix="", at=None) is None:
            return None
        if None in self.loaded.values():
            return None  # what an unreadable import declares would be missed everywhere
        self._unknown_variables()
        declared = self._declared()
        typed = validate(tuple(self.blocks), declared=declared, diags=self.diags)
        start = Source(name=name, text=self.sources[name]).start
        deployment = resolve(typed, spec_file=name, start=start, diags=self.diags)
        if not self.diags.has_errors:
            unused(declared, self.usage, self.diags)
        return deployment

    # ------------------------------------------------------------------- files

    def _file(self, path: Path, *, name: str, prefix: str, at: Span | None) -> _Loaded | None:
        """Read and expand one file, imports first. ``prefix``: of its variables for ``--var``."""
        source = read_source(path, name=name, diags=self.diags, at=at)
        if source is None:
            return None
        self.sources[name] = source.text
        tree = parse(source, self.diags)
        if tree is None:
            return None
        self.suppressions.extend(suppressions(tree.comments, self.diags))
        folder = Path(os.path.abspath(path)).parent
        relative = os.path.relpath(folder, self.root)
        given = {key.removeprefix(prefix): text for key, text in self.variables.items() if key.startswith(prefix)}
        for statement in tree.statements:
            if isinstance(statement, syntax.Var):
                self.known_variables.add(prefix + statement.name.text)
        scope = Scope(bindings={}, outer=None, usage=self.usage)
        body = Expander(
            evaluator=Evaluator(environ=self.environ, diags=self.diags),
            folder=Folder(path=folder, written="" if relative == "." else Path(relative).as_posix()),
            variables=given,
            import_file=lambda statement, alias: self._import(statement, folder, name, f"{prefix}{alias}."),
            turns=self.turns,
        ).expand(tree.statements, scope)
        for attribute in body.attributes:
            self._top_level_attribute(attribute)
        self.blocks.extend(body.blocks)
        labels = frozenset(label for block in body.blocks if (label := label_of(block)))
        return _Loaded(module=Module(bindings=scope.bindings, declared=labels), name=name)

    def _import(self, statement: syntax.Import, folder: Path, importer: str, prefix: str) -> Module | None:
        parts = statement.path.parts
        if len(parts) != 1 or not isinstance(parts[0], str):
            message = "an import names its file in plain text"
            self.diags.report("BC001", message, at=statement.path.span, help='import "./x.blk" as x')
            return None
        path = Path(os.path.normpath(folder / parts[0]))
        name = os.path.normpath(os.path.join(os.path.dirname(importer), parts[0]))
        if path in self.being_loaded:
            chain = " -> ".join(f"`{n}`" for n in (*self.being_loaded.values(), name))
            message = f"`{name}` imports itself: {chain}"
            help_ = "move what both need into a third file"
            self.diags.report("BC107", message, at=statement.span, help=help_)
            return None
        if path not in self.loaded:
            if len(self.loaded) >= MAX_FILES:
                message = f"a spec of more than {MAX_FILES} files"
                self.diags.report("BC109", message, at=statement.span)
                return None
            self.loaded[path] = None
            self.being_loaded[path] = name
            self.loaded[path] = self._file(path, name=name, prefix=prefix, at=statement.path.span)
            del self.being_loaded[path]
        loaded = self.loaded[path]
        return loaded.module if loaded is not None else None

    # ------------------------------------------------------------------- names

    def _top_level_attribute(self, attribute: ExpandedAttribute) -> None:
        homes = [kind for kind in all_kinds() if kind.attribute(attribute.name) is not None]
        message = f"the attribute `{attribute.name}` stands outside of any block"
        if ROOT.block(attribute.name) is not None:
            help_: str | None = f"write `{attribute.name} {{ ... }}`, without `=`"
        elif homes:
            help_ = f"it stands in {' or '.join(f'`{kind.name}`' for kind in homes)}"
        else:
            help_ = f"to name a value, write `let {attribute.name} = ...`"
        self.diags.report("BC102", message, at=attribute.name_span, help=help_)

    def _unknown_variables(self) -> None:
        for given in self.variables:
            if given not in self.known_variables:
                known = sorted(self.known_variables)
                help_ = did_you_mean(given, known, listing="the spec has") or "the spec has none"
                self.diags.report("BC101", f"no variable named `{shorten(given)}`", help=help_)

    def _declared(self) -> Declared:
        """Return the names that references may use; a `let` of the same name would hide one."""
        spans: dict[str, dict[str, Span]] = {"base": {}, "finetune": {}, "profile": {}}
        values = {
            binding.name: binding for binding in self.usage.bound.values() if binding.kind in ("let", "var", "import")
        }
        for block in self.blocks:
            label = label_of(block)
            if block.kind not in spans or label is None or block.label is None:
                continue
            spans[block.kind].setdefault(label, block.label.span)
            hidden = values.get(label)
            if hidden is not None and hidden.span.file == block.header.file:
                first = Label(span=hidden.span, text=f"the `{hidden.kind}`")
                message = f"`{label}` is the name of a `{block.kind}` and of a `{hidden.kind}`"
                self.diags.report(
                    "BC106",
                    message,
                    at=block.label.span,
                    secondary=(first,),
                    help="give one of them another name",
                )
        return Declared(spans=spans)
