"""``--dump-after STAGE``: what stages of the compiler yield, printed or written to a folder while it runs.

In: stage names, and where to. Out: a listener for ``blockc.compiler``; text on stdout under a line with the stage's
name, or a file ``<number>-<stage>.txt`` a stage. What comes before a stage that fails is there nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

DumpOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dump-after",
        metavar="STAGE",
        help="Show what a stage yields: read, trace, tune, unify, place, lower, or all; may be repeated.",
    ),
]
DumpToOption = Annotated[
    Path, typer.Option("--dump-to", metavar="DIR", help="Where `--dump-after` writes, a file a stage; `-`: stdout.")
]


def stage_dumps(wanted: list[str], target: Path, *, as_json: bool) -> Callable[[str, Any], None]:
    """A listener for results of stages. Unknown names are usage errors."""
    from blockc.render import STAGES

    unknown = [name for name in wanted if name not in (*STAGES, "all")]
    if unknown:
        raise typer.BadParameter(
            f"no stage `{unknown[0]}`; there are {', '.join(STAGES)}, and all", param_hint="--dump-after"
        )
    to_stdout = str(target) == "-"
    if not to_stdout and not wanted:
        raise typer.BadParameter("say which stages with `--dump-after`", param_hint="--dump-to")
    if to_stdout and wanted and as_json:
        raise typer.BadParameter("with `--json` dumps need `--dump-to DIR`", param_hint="--dump-after")
    chosen = set(STAGES if "all" in wanted else wanted)

    def on_result(name: str, result: Any) -> None:
        from blockc.render import render_stage

        if name not in chosen or result is None:
            return
        text = render_stage(name, result)
        if to_stdout:
            print(f"=== {name} ===\n{text}", flush=True)
        else:
            _write(target / f"{STAGES.index(name) + 1}-{name}.txt", text)

    return on_result


def _write(path: Path, text: str) -> None:
    from blockc.diag import DiagnosticError, Diagnostics

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        diags = Diagnostics()
        diags.report("BC003", f"cannot write {path}: {error.strerror}", help="name another folder with `--dump-to`")
        raise DiagnosticError(diags) from error
