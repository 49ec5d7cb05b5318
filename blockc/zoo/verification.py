"""Verification: everything is read, and each plan that is referred to has all that it needs.

In: a zoo. Out: one diagnostic for each thing that is damaged (BC903), missing (BC904) or of another version (BC902),
named by file and tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blockc.diag import DiagnosticError, Diagnostics
from blockc.plan import plan_uses, read_plan
from blockc.zoo.reference import Reference, references
from blockc.zoo.store import Zoo


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was read. ``nbytes``: of packs and blobs, as files."""

    tensors: int
    blobs: int
    plans: int
    nbytes: int


def verify_zoo(zoo: Zoo, on_file: Callable[[Path, int], None]) -> tuple[Diagnostics, Verified]:
    """``on_file`` is called with each file, and its bytes, before it is read."""
    read_bytes = 0

    def count(path: Path, nbytes: int) -> None:
        nonlocal read_bytes
        read_bytes += nbytes
        on_file(path, nbytes)

    diags = zoo.verify(count)
    tensors = {span.name for spans in zoo.packs().values() for span in spans}
    blobs = zoo.blobs()
    try:
        found = references(zoo)
    except DiagnosticError as error:
        diags.items += error.diagnostics.items
        found = ()
    for plan, reference in {item.plan: item for item in found}.items():
        if plan not in blobs:
            _report_lack(zoo, reference, [f"{plan} (the copy of the plan itself)"], diags)
        else:
            _check_plan(zoo, reference, tensors, diags)
    return diags, Verified(tensors=len(tensors), blobs=len(blobs), plans=len(found), nbytes=read_bytes)


def _check_plan(zoo: Zoo, reference: Reference, tensors: set[str], diags: Diagnostics) -> None:
    own = Diagnostics()
    try:
        plan = read_plan(zoo.blob(reference.plan), reference.place)
        uses = plan_uses(plan, zoo.blob, own)
    except DiagnosticError as error:
        own.items += error.diagnostics.items
        uses = ()
    said = {(item.code.id, item.message) for item in diags}
    diags.items += [item for item in own if (item.code.id, item.message) not in said]  # damage was reported before
    lacking = {use.digest: use.what for use in uses}
    blobs = zoo.blobs()
    missing = [
        f"{digest} ({what})" for digest, what in lacking.items() if digest not in tensors and digest not in blobs
    ]
    if missing:
        _report_lack(zoo, reference, missing, diags)


def _report_lack(zoo: Zoo, reference: Reference, missing: list[str], diags: Diagnostics) -> None:
    diags.report(
        "BC904",
        f"in {zoo.root} the plan {reference.plan[:12]} ({reference.place}) lacks {len(missing)} tensors and blobs",
        notes=tuple(missing),
        help=f"compile it again; if it is not wanted any more: `blockc zoo gc --forget {reference.plan[:12]}`",
    )
