"""Where an adapter acts: the fields of its configuration that name modules, as all of PEFT's tuners read them.

In: a configuration that nobody has checked. Out: `Targets`, and what is wrong with the fields. Invariant: whether a
module is a target takes bounded time, and is what PEFT 0.21 says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockc.tune.patterns import MOST_CHARACTERS, MOST_PATTERNS, Matcher, Names, inside, layers

TARGETING = frozenset({
    "peft_type", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Which modules a configuration adapts. ``saved``: modules that it replaces whole, and adapts nothing in."""

    names: Names
    excluded: Names
    layers: frozenset[int] | None
    patterns: tuple[str, ...]
    saved: tuple[str, ...]
    matcher: Matcher

    def __contains__(self, module: object) -> bool:
        """Raises `SlowPatternError`."""
        matcher = self.matcher
        if not isinstance(module, str) or matcher.matches(self.excluded, module):
            return False
        if matcher.lies_in(self.saved, module) or not matcher.matches(self.names, module):
            return False
        if self.layers is None or isinstance(self.names, str) or module in self.names:
            return True  # PEFT asks for the layer only where a name is a part of the path
        return matcher.layer_of(self.patterns, module) in self.layers

    def __str__(self) -> str:
        return repr(self.names if isinstance(self.names, str) else tuple(sorted(self.names)))


def names_of(value: Any) -> Names:
    """A list of names, or a pattern."""
    if isinstance(value, str) and value.lower() == "all-linear":
        return r"(?!(.*\.)?lm_head$).*"  # PEFT resolves it when it saves; older files keep it. Not the head.
    return value if isinstance(value, str) else frozenset(value or ())


def targets_of(config: Mapping[str, Any], matcher: Matcher) -> Targets:
    """The targets of fields that `malformed` finds nothing wrong with."""
    chosen, patterns = config.get("layers_to_transform"), config.get("layers_pattern") or ()
    return Targets(
        names=names_of(config.get("target_modules")),
        excluded=names_of(config.get("exclude_modules")),
        layers=None if chosen in (None, []) else frozenset([chosen] if isinstance(chosen, int) else chosen),
        patterns=(patterns,) if isinstance(patterns, str) else tuple(patterns),
        saved=tuple(config.get("modules_to_save") or ()),
        matcher=matcher,
    )


def malformed(config: Mapping[str, Any], matcher: Matcher, *more: str) -> list[tuple[str, str]]:
    """Fields, and what they should be. ``more``: other fields that hold names or a pattern. `SlowPatternError`."""
    found: list[tuple[str, str]] = []
    for field in ("target_modules", "exclude_modules", *more):
        value = config.get(field)
        if value is not None and not isinstance(value, str) and not all_str(value):
            found.append((field, "a list of module names or a pattern"))
        elif isinstance(value, str) and not are_patterns([value], matcher):
            found.append((field, "a valid regular expression"))
    chosen = config.get("layers_to_transform")
    if chosen is not None and not is_int(chosen) and not (isinstance(chosen, list) and all(map(is_int, chosen))):
        found.append(("layers_to_transform", "an integer or a list of integers"))
    patterns = config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not all_str(patterns):
        found.append(("layers_pattern", "a name or a list of names"))
    elif not are_patterns([layers(pattern) for pattern in patterns], matcher):
        found.append(("layers_pattern", "a valid regular expression"))
    saved = config.get("modules_to_save")
    if saved and not (all_str(saved) and are_patterns([inside(name) for name in saved], matcher)):
        found.append(("modules_to_save", "a list of module names"))
    return found


def are_patterns(patterns: list[str], matcher: Matcher) -> bool:
    """Whether these are regular expressions, and no more than anybody writes."""
    if len(patterns) > MOST_PATTERNS or sum(map(len, patterns)) > MOST_CHARACTERS:
        return False
    try:
        for pattern in patterns:
            matcher.compile(pattern)
    except re.error:
        return False
    return True


def lies_in(parameter: str, module: str) -> bool:
    """Whether a parameter is of a module whose path ends in a name, or of one inside it."""
    parts = parameter.split(".")
    return any(".".join(parts[:end]).endswith(module) for end in range(1, len(parts)))


def all_str(value: Any) -> bool:
    """Whether it is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_int(value: Any) -> bool:
    """Whether it is an integer, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)
