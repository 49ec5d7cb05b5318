"""Fields of an adapter's configuration that decide where it acts, as all of PEFT's tuners read them.

A field that is neither known to the kind nor neutral is refused (BC207): dropped in silence it would be a wrong scale
or a missing term.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from blockc.tune.adapter import AdapterFiles
from blockc.tune.adapter_config import WITHOUT_EFFECT, is_neutral, matches, names_of, short

_TARGETING = frozenset({"peft_type", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Which modules a configuration names: ``names`` a list, or a pattern for the whole path."""

    names: tuple[str, ...] | str
    excluded: tuple[str, ...] | str
    layers: tuple[int, ...] | None
    patterns: tuple[str, ...]

    def __contains__(self, module: object) -> bool:
        if not isinstance(module, str) or matches(self.excluded, module) or not matches(self.names, module):
            return False
        if self.layers is None or isinstance(self.names, str) or module in self.names:
            return True  # PEFT asks for the layer only where a name is a part of the path
        for pattern in self.patterns or (r"[^.]*",):
            if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
                return int(match[1]) in self.layers
        return False


def read_targets(files: AdapterFiles, *, applied: Collection[str], without_effect: Collection[str]) -> Targets | None:
    """The modules that a configuration targets. Problems go to the files' diagnostics (BC207); then None.

    ``applied``: fields that the kind reads itself; ``without_effect``: training settings of the kind.
    """
    known = {*_TARGETING, *applied, *without_effect, *WITHOUT_EFFECT}
    problems = [
        (field, value, "it changes the result and is not understood")
        for field, value in sorted(files.config.items())
        if field not in known and not is_neutral(value)
    ]
    config = files.config
    for field in ("target_modules", "exclude_modules"):
        value = config.get(field)
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if not (value is None or listed or (isinstance(value, str) and _compiles(value))):
            problems.append((field, value, "it is neither a list of module names nor a pattern"))
    layers, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or []
    layers = [layers] if isinstance(layers, int) else layers
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if layers is not None and not (isinstance(layers, list) and all(isinstance(layer, int) for layer in layers)):
        problems.append(("layers_to_transform", layers, "it is no list of layers"))
    if not isinstance(patterns, list) or not all(isinstance(item, str) and _compiles(item) for item in patterns):
        problems.append(("layers_pattern", patterns, "it is no list of names"))
    for field, value, why in problems:
        files.diags.report(
            "BC207", f"`{field} = {short(value)}` of {files.written} is not supported", at=files.at, notes=(why,),
            help="train without it, or merge the adapter with PEFT",
        )  # fmt: skip
    if problems:
        return None
    return Targets(
        names=names_of(config.get("target_modules") or ()),
        excluded=names_of(config.get("exclude_modules") or ()),
        layers=tuple(layers) if layers else None,
        patterns=tuple(patterns),
    )


def report_no_target(files: AdapterFiles, targets: Targets, what: str) -> None:
    """Say that a configuration targets nothing that the base has (BC211)."""
    files.diags.report(
        "BC211", f"the configuration of {files.written} targets no {what} of its base", at=files.at,
        notes=(f"target_modules = {targets.names}",), help="check which base the adapter was made for",
    )  # fmt: skip


def _compiles(pattern: str) -> bool:
    try:
        re.compile(rf"(?:^|.*?\.){pattern}\.(\d+)\.")
    except (re.error, RecursionError):
        return False
    return True
