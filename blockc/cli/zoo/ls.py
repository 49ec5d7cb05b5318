"""``blockc zoo ls``: plans, packs, tensors, blobs, bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption
from blockc.cli.zoo.names import WhichZoo

if TYPE_CHECKING:
    from blockc.zoo import Survey


def ls(
    zoo: WhichZoo = Path("zoo"),
    every: Annotated[bool, typer.Option("--all", help="List every pack, tensor and blob, with its plans.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what a zoo holds, and the plans it holds it for."""
    from blockc.cli.report import exit_code, print_document, reporting, show
    from blockc.diag import Diagnostics
    from blockc.diag.json import diagnostics_document
    from blockc.render.zoo import render_survey
    from blockc.zoo import Zoo, survey

    damaged = Diagnostics()
    with reporting("zoo ls", as_json=as_json):
        found = survey(Zoo(zoo), diags=damaged)
    if as_json:
        print_document(
            "zoo ls",
            ok=not damaged.has_errors,
            zoo=str(zoo),
            **_document(found),
            diagnostics=diagnostics_document(damaged),
        )
    else:
        print(render_survey(str(zoo), found, every=every), end="")
        show(damaged)
    raise typer.Exit(int(exit_code(damaged)))


def _document(found: Survey) -> dict[str, Any]:
    return {
        "files_bytes": found.files_bytes,
        "plans": [
            {
                "plan": item.reference.plan,
                "place": item.reference.place,
                "host": item.reference.host,
                "state": item.state,
                "tensors": item.tensors,
                "blobs": item.blobs,
                "bytes": item.nbytes,
                "own_bytes": item.own_bytes,
            }
            for item in found.plans
        ],
        "packs": [
            {
                "pack": name,
                "tensors": [
                    {
                        "digest": span.name,
                        "dtype": span.dtype,
                        "shape": list(span.shape),
                        "bytes": span.end - span.start,
                        "plans": list(found.plans_of.get(span.name, ())),
                    }
                    for span in spans
                ],
            }
            for name, spans in found.packs.items()
        ],
        "blobs": [
            {"digest": digest, "bytes": nbytes, "plans": list(found.plans_of.get(digest, ()))}
            for digest, nbytes in found.blobs.items()
        ],
        "unneeded": list(found.unneeded),
    }
