"""``blockc zoo gc``: remove what no plan needs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption
from blockc.cli.zoo.names import WhichZoo, references_of

if TYPE_CHECKING:
    from blockc.zoo import Collected, Reference, Zoo


def gc(
    zoo: WhichZoo = Path("zoo"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    keep: Annotated[
        list[Path] | None,
        typer.Option("--keep", metavar="PLAN", help="Keep what this plan file needs, too; may be repeated."),
    ] = None,
    forget: Annotated[
        list[str] | None,
        typer.Option("--forget", metavar="PLAN", help="End the reference to a plan (path or digest); may be repeated."),
    ] = None,
    forget_gone: Annotated[
        bool, typer.Option("--forget-gone", help="End references to plans whose files are gone from this machine.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for a process that writes to the zoo.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Remove what no plan needs: what compilations in progress use stays, and servers go on reading."""
    from blockc.cli.report import exit_code, print_document, reporting, show
    from blockc.diag import Diagnostics
    from blockc.diag.json import diagnostics_document
    from blockc.render.zoo import render_collected
    from blockc.zoo import Zoo, collect

    diags = Diagnostics()
    with reporting("zoo gc", as_json=as_json):
        store = Zoo(zoo, on_wait=_wait if wait else _refuse_to_wait)
        ended = _ended(store, forget or [], forget_gone=forget_gone)
        kept = [_plan_bytes(path) for path in keep or []]
        _refuse_to_empty(store, bool(kept) or bool(ended))
        done = collect(store, keep=kept, ended=ended, dry_run=dry_run, diags=diags)
    if as_json:
        print_document(
            "zoo gc",
            ok=not diags.has_errors,
            dry_run=dry_run,
            **_document(done),
            diagnostics=diagnostics_document(diags),
        )
    else:
        print(render_collected(str(zoo), done), end="")
        show(diags)
    raise typer.Exit(int(exit_code(diags)))


def _ended(store: Zoo, names: list[str], *, forget_gone: bool) -> list[Reference]:
    from blockc.zoo import references, state_of

    found = references(store) if names or forget_gone else ()
    ended = [item for item in found if forget_gone and state_of(store, item) in ("gone", "replaced")]
    for name in names:
        ended += references_of(name, store, found)
    return sorted(set(ended))


def _plan_bytes(path: Path) -> bytes:
    """A plan's file, checked: a wrong path must not let its tensors go."""
    from blockc.plan import dump_plan, load_plan

    return dump_plan(load_plan(path))


def _refuse_to_empty(store: Zoo, said: bool) -> None:
    """A zoo of an earlier version has no references, and all of its plans would lose what they need."""
    from blockc.diag import DiagnosticError, Diagnostics
    from blockc.zoo import references

    if said or references(store) or not (store.packs() or store.blobs()):
        return
    diags = Diagnostics()
    diags.report(
        "BC907",
        f"{store.root} has no reference to any plan: all of it would go",
        help="name the plans to keep with `--keep PLAN`, compile them again, or remove the folder",
    )
    raise DiagnosticError(diags)


def _wait() -> None:
    print("waiting for another process that writes to the zoo", file=sys.stderr, flush=True)


def _refuse_to_wait() -> None:
    from blockc.diag import DiagnosticError, Diagnostics

    diags = Diagnostics()
    diags.report("BC908", "another process writes to the zoo", help="try again later, or leave `--no-wait` out")
    raise DiagnosticError(diags)


def _document(done: Collected) -> dict[str, Any]:
    return {
        "forgotten": [{"plan": item.plan, "place": item.place, "host": item.host} for item in done.ended],
        "packs": [
            {
                "pack": work.name,
                "rewritten": bool(work.keeps),
                "removed": [span.name for span in work.drops],
                "kept": [span.name for span in work.keeps],
            }
            for work in done.packs
        ],
        "blobs": list(done.blobs),
        "kept_tensors": done.kept_tensors,
        "kept_bytes": done.kept_bytes,
        "files_bytes_before": done.files_bytes_before,
        "files_bytes_after": done.files_bytes_after,
    }
