"""``blockc zoo verify``: read everything, compare it with its digest, and see that no plan lacks anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from blockc.cli.options import JsonOption
from blockc.cli.zoo.names import WhichZoo

if TYPE_CHECKING:
    from blockc.zoo import Zoo


def verify(zoo: WhichZoo = Path("zoo"), as_json: JsonOption = False) -> None:
    """Read every tensor, blob and reference; name what is damaged, and what a plan lacks."""
    from blockc.cli.report import exit_code, print_document, reporting, show
    from blockc.diag.json import diagnostics_document
    from blockc.render import counted, format_bytes
    from blockc.zoo import Zoo, verify_zoo

    with reporting("zoo verify", as_json=as_json):
        store = Zoo(zoo)
        on_file, end = _progress(store)
        found, verified = verify_zoo(store, on_file)
        end()
    if as_json:
        print_document(
            "zoo verify",
            ok=not found.has_errors,
            zoo=str(zoo),
            tensors=verified.tensors,
            blobs=verified.blobs,
            bytes=verified.nbytes,
            plans=verified.plans,
            diagnostics=diagnostics_document(found),
        )
    else:
        show(found)
        words = (
            f"{counted(verified.tensors, 'tensor')}, {counted(verified.blobs, 'blob')}, "
            f"{counted(verified.plans, 'plan')}; {format_bytes(verified.nbytes)} read"
        )
        print(f"{zoo}: {'damaged' if found.has_errors else 'ok'} ({words})")
    raise typer.Exit(int(exit_code(found)))


def _progress(store: Zoo) -> tuple[Callable[[Path, int], None], Callable[[], None]]:
    """What is told of each file before it is read, and of the end. On a terminal: one line that changes."""
    from blockc.render import format_bytes

    if not sys.stderr.isatty():
        return lambda path, nbytes: None, lambda: None
    total = store.files_bytes()
    seen = 0

    def on_file(path: Path, nbytes: int) -> None:
        nonlocal seen
        share = 100 * seen // max(1, total)
        print(f"\r\x1b[K{share:>3} % of {format_bytes(total)}: {path.name[:12]}", end="", file=sys.stderr, flush=True)
        seen += nbytes

    return on_file, lambda: print("\r\x1b[K", end="", file=sys.stderr, flush=True)
