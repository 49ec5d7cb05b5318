"""Which app and which block a user means.

In: a plan and words from a command line. Out: indices. Raises :class:`DiagnosticError` with near names (BC101, BC109,
BC110) for what is not there or could be several things.
"""

from __future__ import annotations

import re

from blockc.diag import DiagnosticError, Diagnostics
from blockc.explain.names import occurrence_names, parameter_names
from blockc.plan import AppEntry, ExecutionPlan, PathEntry
from blockc.spec.suggest import did_you_mean

_NUMBER = re.compile(r"\d{1,6}")
_DIGEST = re.compile(r"[0-9a-f]{6,64}")
_SHOWN = 4


def find_app(plan: ExecutionPlan, address: str) -> int:
    """Index of the app that clients call ``address``."""
    addresses = [app.address for app in plan.apps]
    if address in addresses:
        return addresses.index(address)
    named = [index for index, app in enumerate(plan.apps) if app.app == address]
    if len(named) == 1:
        return named[0]
    if named:
        help_: str | None = _listed([addresses[index] for index in named])
        raise _refusal("BC110", f"{len(named)} apps are called `{address}`", help_)
    help_ = did_you_mean(address, addresses, listing="its apps are")
    raise _refusal("BC101", f"the plan has no app `{address}`", help_)


def find_occurrence(plan: ExecutionPlan, app: AppEntry, block: str) -> int:
    """Occurrence in the app's chain of a block: its number, a module or parameter, or a digest's first digits."""
    path = plan.paths[plan.chains[app.chain].path]
    if _NUMBER.fullmatch(block):
        if int(block) >= len(path.blocks):
            raise _refusal(
                "BC109", f"`{app.address}` has no block {block}", f"its blocks are 0 to {len(path.blocks) - 1}"
            )
        return int(block)
    names = occurrence_names(plan, path)
    found = [place for place, name in enumerate(names) if name == block] or [
        place for place in range(len(names)) if _means(block, [names[place], *_parameters(plan, path, place)])
    ]
    if not found and _DIGEST.fullmatch(block):
        digests = sorted({digest for digest in path.blocks if digest.startswith(block)})
        if len(digests) > 1:
            raise _refusal("BC110", f"{len(digests)} blocks have digests that begin with `{block}`", _listed(digests))
        found = [path.blocks.index(digest) for digest in digests]
    if not found:
        raise _refusal(
            "BC101",
            f"`{app.address}` has no block `{block}`",
            did_you_mean(block, [*names, *(name.removeprefix("model.") for name in names)])
            or f"name it by number (0 to {len(names) - 1}), by module such as `{names[len(names) // 2]}`, or by digest",
        )
    if len(found) > 1:
        raise _refusal(
            "BC110",
            f"`{block}` could be {len(found)} blocks of `{app.address}`",
            _listed([str(place) for place in found], [names[place] for place in found]),
        )
    return found[0]


def _parameters(plan: ExecutionPlan, path: PathEntry, occurrence: int) -> list[str]:
    return list(parameter_names(plan, path, occurrence).values())


def _means(word: str, names: list[str]) -> bool:
    """Whether a word is a run of whole parts of one of the names: ``layers.3`` of ``model.layers.3.mlp.up_proj``."""
    return any(f".{word}." in f".{name}." for name in names)


def _listed(words: list[str], meanings: list[str] | None = None) -> str:
    told = [f"`{word}`" for word in words]
    if meanings is not None:
        told = [f"{word} ({meaning})" for word, meaning in zip(told, meanings, strict=True)]
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return f"write one of {', '.join(told[:_SHOWN])}{more}"


def _refusal(code: str, message: str, help_: str | None) -> DiagnosticError:
    diags = Diagnostics()
    diags.report(code, message, help=help_)
    return DiagnosticError(diags)
