"""What a name on the command line means in a zoo: the beginning of a digest, or the path of a plan.

In: a zoo and a name. Out: what it names, or BC907 that says what there is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from blockc.zoo import Reference, Zoo

_SHOWN = 5

WhichZoo = Annotated[Path, typer.Option("--zoo", metavar="DIR", help="The store of blocks.")]


def digest_of(name: str, digests: Iterable[str], *, where: str) -> str:
    """The one digest that begins with ``name``."""
    found = sorted(digest for digest in set(digests) if digest.startswith(name.lower()))
    if len(found) == 1 and name:
        return found[0]
    if not found or not name:
        unknown(f"{where} holds nothing called `{name}`", help_="`blockc zoo ls --all` lists what there is")
    return unknown(
        f"`{name}` is the beginning of {len(found)} digests in {where}",
        notes=(", ".join(digest[: len(name) + 8] for digest in found[:_SHOWN]) + (", ..." if found[_SHOWN:] else ""),),
        help_="write more of it",
    )


def references_of(name: str, zoo: Zoo, found: Iterable[Reference]) -> list[Reference]:
    """References to the plan that ``name`` is the path or the beginning of the digest of."""
    from blockc.zoo import path_of

    found = list(found)
    wanted = Path(os.path.abspath(name))
    by_place = [item for item in found if path_of(zoo, item) in (wanted, wanted.resolve()) or item.place == name]
    if by_place:
        return by_place
    if not found:
        unknown(f"{zoo.root} has no reference to any plan", help_="`blockc compile` leaves one for each plan it writes")
    plan = digest_of(name, (item.plan for item in found), where=f"the plans of {zoo.root}")
    return [item for item in found if item.plan == plan]


def unknown(message: str, *, notes: tuple[str, ...] = (), help_: str) -> NoReturn:
    """Raise BC907."""
    from blockc.diag import DiagnosticError, Diagnostics

    diags = Diagnostics()
    diags.report("BC907", message, notes=notes, help=help_)
    raise DiagnosticError(diags)
