"""``blockc viz PLAN`` shows a plan: devices, segments, who shares what, memory; and every level below it.

In: a plan; for the sides of chains also its zoo. Out: text on stdout, or one document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption, PlanArgument, ZooOption, zoo_of

if TYPE_CHECKING:
    from blockc.plan import ExecutionPlan, SideManifest

_LEVELS = ("plan", "segments", "chains", "graph", "structures")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("viz")(viz)


def viz(
    plan: PlanArgument,
    show: Annotated[
        list[str] | None,
        typer.Option(
            "--show",
            metavar="LEVEL",
            help="What to show: plan (if not given), segments, chains, graph, structures, or all; may be repeated.",
        ),
    ] = None,
    zoo: ZooOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a plan places where, and what it shares."""
    import sys

    from blockc.cli.report import print_document, reporting
    from blockc.plan import load_plan

    levels = _levels(show)
    with reporting("viz", as_json=as_json):
        loaded = load_plan(plan)
        manifests = _manifests(loaded, zoo, plan) if "chains" in levels else {}
    if as_json:
        print_document("viz", ok=True, **_document(loaded, levels, manifests))
        return
    texts = [_renderers(manifests)[level](loaded) for level in levels]
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    text = "\n".join(texts)
    print(text if encoding in ("utf8", "utf16") else text.encode("ascii", "backslashreplace").decode(), end="")


def _levels(show: list[str] | None) -> list[str]:
    wanted = show or ["plan"]
    unknown = [name for name in wanted if name not in (*_LEVELS, "all")]
    if unknown:
        raise typer.BadParameter(
            f"no level `{unknown[0]}`; there are {', '.join(_LEVELS)}, and all", param_hint="--show"
        )
    return [level for level in _LEVELS if level in wanted or "all" in wanted]


def _renderers(manifests: Mapping[str, SideManifest]) -> dict[str, Callable[[ExecutionPlan], str]]:
    from blockc.render.chains import plan_chains
    from blockc.render.graph import plan_blocks, render_blocks
    from blockc.render.segments import plan_segments
    from blockc.render.structures import render_structures

    return {
        "plan": _plan_text,
        "segments": plan_segments,
        "chains": lambda plan: plan_chains(plan, manifests),
        "graph": lambda plan: render_blocks(plan_blocks(plan)),
        "structures": render_structures,
    }


def _plan_text(plan: ExecutionPlan) -> str:
    import shutil
    import sys

    from blockc.render import render_plan

    width = shutil.get_terminal_size((120, 24)).columns if sys.stdout.isatty() else 1000
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16")
    return render_plan(plan, width=width, ascii_only=not unicode)


def _manifests(plan: ExecutionPlan, given: Path | None, path: Path) -> dict[str, SideManifest]:
    """What can be read of the chains' sides: all if a zoo was named, none if there is none beside the plan."""
    from blockc.diag import DiagnosticError
    from blockc.plan import read_manifest
    from blockc.zoo import Zoo

    if plan.target == "sim":
        return {}  # their digests are names
    try:
        store = Zoo(zoo_of(given, path))
    except DiagnosticError:
        if given is not None:
            raise
        return {}
    digests = sorted({chain.sides for chain in plan.chains if chain.sides is not None})
    return {digest: read_manifest(digest, store.blob(digest)) for digest in digests}


def _document(plan: ExecutionPlan, levels: list[str], manifests: Mapping[str, SideManifest]) -> dict[str, Any]:
    whole = plan.model_dump(mode="json")
    content: dict[str, Any] = {}
    if "plan" in levels:
        content |= {
            "apps": {app.address: list(plan.chains[app.chain].segments) for app in plan.apps},
            "segments": whole["segments"],
            "kv_groups": whole["kv_groups"],
            "memory": whole["memory"],
            "bytes": whole["baselines"],
            "tenants": whole["tenants"],
            "solver": whole["solver"],
        }
    if "segments" in levels:
        content |= {"segments": whole["segments"], "kv_groups": whole["kv_groups"]}
    if "chains" in levels:
        sides = {digest: manifest.model_dump(mode="json")["sides"] for digest, manifest in manifests.items()}
        content |= {"paths": whole["paths"], "chains": whole["chains"], "sides": sides}
    if "graph" in levels:
        content |= {"blocks": whole["blocks"]}
    if "structures" in levels:
        content |= {"structures": whole["structures"]}
    return content
