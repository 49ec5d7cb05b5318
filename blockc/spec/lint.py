"""What is not wrong and yet worth a word; and the order in which diagnostics are shown.

In: what was declared and what was used. Out: BC801 warnings; diagnostics sorted, without
repetition.
"""

from __future__ import annotations

from blockc.diag import Diagnostic, Diagnostics, Label
from blockc.spec.context import Declared
from blockc.spec.scope import Usage

JUDGED = frozenset({"BC801", "BC803", "BC804"})
"""The warnings that loading can raise; suppressions of others are for later phases to judge."""

_MOST_AT_ONE_PLACE = 3  # a loop repeats its body's problems
_LABELS_OF_A_GROUP = 3


def unused(declared: Declared, usage: Usage, diags: Diagnostics) -> None:
    """Report what is declared and never used."""
    for binding in usage.unused():
        if binding.kind == "import":
            continue  # an import also contributes its declarations
        message = f"`{binding.name}` is never used"
        help_ = f"remove it, or call it `_{binding.name}`"
        diags.report("BC801", message, at=binding.span, help=help_)
    nouns = {"base": "base", "finetune": "fine-tune", "profile": "profile"}
    for kind, noun in nouns.items():
        for name, span in declared.spans[kind].items():
            if (kind, name) not in declared.used:
                help_ = (
                    "remove it, or let an app use it"
                    if kind == "profile"
                    else f"remove it, or serve it: `app NAME {{ model = {name} }}`"
                )
                message = f"the {noun} `{name}` is never used"
                diags.report("BC801", message, at=span, help=help_)


def tidy(found: Diagnostics) -> Diagnostics:
    """Sort by place, errors among warnings; drop repetitions; group what is not in effect."""
    seen: set[tuple[str, str, Label | None]] = set()
    at_place: dict[tuple[str, Label | None], int] = {}
    kept: list[Diagnostic] = []
    for item in sorted(found, key=_place):
        if (item.code.id, item.message, item.primary) in seen:
            continue
        seen.add((item.code.id, item.message, item.primary))
        place = (item.code.id, item.primary)
        at_place[place] = at_place.get(place, 0) + 1
        if item.primary is None or at_place[place] <= _MOST_AT_ONE_PLACE:
            kept.append(item)
    return Diagnostics(items=_grouped(kept))


def _place(item: Diagnostic) -> tuple[str, int, int]:
    if item.primary is None:
        return ("", 0, 0)
    span = item.primary.span
    return (span.file, span.start_line, span.start_column)


def _grouped(items: list[Diagnostic]) -> list[Diagnostic]:
    """Merge BC804 of the same message: a thousand apps with an `slo` give one warning."""
    groups: dict[str, list[Diagnostic]] = {}
    for item in items:
        if item.code.id == "BC804":
            groups.setdefault(item.message, []).append(item)
    grouped: list[Diagnostic] = []
    for item in items:
        group = groups.get(item.message, []) if item.code.id == "BC804" else [item]
        if item is not group[0]:
            continue
        grouped.append(item if len(group) == 1 else _merge(group))
    return grouped


def _merge(group: list[Diagnostic]) -> Diagnostic:
    first = group[0]
    others = tuple(item.primary for item in group[1:] if item.primary is not None)
    shown = others[:_LABELS_OF_A_GROUP]
    left_out = len(others) - len(shown)
    notes = (*first.notes, f"and in {left_out} more places") if left_out else first.notes
    return Diagnostic(
        code=first.code,
        message=first.message,
        primary=first.primary,
        secondary=(
            *first.secondary,
            *(Label(span=label.span, text="here, too") for label in shown),
        ),
        notes=notes,
        help=first.help,
    )
