"""``blockc viz PLAN`` shows a plan: devices, segments, who shares what, memory."""

from __future__ import annotations

import typer

from blockc.cli.options import JsonOption, PlanArgument


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("viz")(viz)


def viz(plan: PlanArgument, as_json: JsonOption = False) -> None:
    """Show what a plan places where, and what it shares."""
    import shutil
    import sys

    from blockc.cli.report import print_document, reporting
    from blockc.plan import load_plan
    from blockc.render import render_plan

    with reporting("viz", as_json=as_json):
        loaded = load_plan(plan)
    if as_json:
        print_document(
            "viz",
            ok=True,
            apps={app.address: list(loaded.chains[app.chain].segments) for app in loaded.apps},
            segments=[segment.model_dump(mode="json") for segment in loaded.segments],
            kv_groups=[group.model_dump(mode="json") for group in loaded.kv_groups],
            memory=[entry.model_dump(mode="json") for entry in loaded.memory],
            bytes=loaded.baselines.model_dump(mode="json"),
            solver=loaded.solver.model_dump(mode="json"),
        )
        return
    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 1000
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16")
    print(render_plan(loaded, width=width, ascii_only=not unicode), end="")
