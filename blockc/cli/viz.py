"""``blockc viz PLAN`` shows a plan: devices, segments, who shares what, memory; and every level below it.

In: a plan; for the sides of chains also its zoo; another plan to compare with. Out: text on stdout, one document, or
with ``--format`` a page, a picture or a diagram, in a file or on stdout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption, PlanArgument, ZooOption, zoo_of

if TYPE_CHECKING:
    from blockc.cost.profile import Profile
    from blockc.plan import ExecutionPlan, SideManifest

_LEVELS = ("plan", "segments", "chains", "graph", "structures")


class Format(StrEnum):
    """What a plan is shown as."""

    text = "text"
    html = "html"
    svg = "svg"
    mermaid = "mermaid"


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
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="OLD", help="An older plan: show what PLAN changes of it (text and html)."),
    ] = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format", help="`html` is one page with every view, `svg` the devices, `mermaid` a chart for Markdown."
        ),
    ] = Format.text,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to stdout.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="Rates that `blockc profile` measured, for times (html)."),
    ] = None,
    zoo: ZooOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a plan places where, and what it shares."""
    from blockc.cli.report import print_document, reporting
    from blockc.plan import load_plan

    levels = _levels(show)
    _check_usage(format_, show=show, against=against, output=output, as_json=as_json)
    if profile is not None and format_ is not Format.html:
        raise typer.BadParameter("times are in the page: --format html", param_hint="--profile")
    with reporting("viz", as_json=as_json):
        loaded = load_plan(plan)
        old = None if against is None else load_plan(against)
        manifests = _manifests(loaded, zoo, plan) if "chains" in levels else {}
        measured = None if profile is None else _profile(loaded, profile)
    if as_json:
        print_document("viz", ok=True, **_document(loaded, levels, manifests))
    elif format_ is Format.text:
        _put("\n".join(_texts(loaded, old, levels if show or old is None else [], manifests)), output)
    else:
        _put(_drawn(format_, loaded, old, measured), output)


def _check_usage(
    format_: Format, *, show: list[str] | None, against: Path | None, output: Path | None, as_json: bool
) -> None:
    if format_ is not Format.text and (show or as_json):
        raise typer.BadParameter(f"{format_} has no levels and is no JSON", param_hint="--format")
    if against is not None and (as_json or format_ in (Format.svg, Format.mermaid)):
        raise typer.BadParameter("two plans are compared as text or html", param_hint="--against")
    if output is not None and as_json:
        raise typer.BadParameter("JSON goes to stdout", param_hint="--output")


def _texts(
    plan: ExecutionPlan, old: ExecutionPlan | None, levels: list[str], manifests: Mapping[str, SideManifest]
) -> list[str]:
    from blockc.render.change import change_text
    from blockc.render.facts import facts_of

    compared = [] if old is None else [change_text(facts_of(plan), facts_of(old))]
    return compared + [_renderers(manifests)[level](plan) for level in levels]


def _profile(plan: ExecutionPlan, path: Path) -> Profile:
    """Raises `DiagnosticError` (BC003, BC504, BC505) for one that does not fit; says what was not measured (BC506)."""
    from blockc.cli.report import show
    from blockc.cost.profile import read_profile
    from blockc.diag import Diagnostics
    from blockc.simulate import rates_of

    diags = Diagnostics()
    measured = read_profile(path)
    rates_of(plan, diags=diags, profile=measured)
    diags.raise_if_errors()
    show(diags)
    return measured


def _drawn(format_: Format, plan: ExecutionPlan, old: ExecutionPlan | None, profile: Profile | None) -> str:
    from blockc.render.mermaid import render_mermaid
    from blockc.render.page import render_page, render_svg

    match format_:
        case Format.svg:
            return render_svg(plan)
        case Format.mermaid:
            return render_mermaid(plan)
        case _:
            return render_page(plan, against=old, profile=profile).html


def _put(text: str, output: Path | None) -> None:
    """Raises `DiagnosticError` (BC003) if the file cannot be written."""
    import sys

    from blockc.diag import DiagnosticError, Diagnostics

    if output is None:
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        print(text if encoding in ("utf8", "utf16") else text.encode("ascii", "backslashreplace").decode(), end="")
        return
    try:
        output.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        diags = Diagnostics()
        diags.report("BC003", f"cannot write {output}: {error.strerror}", help="name another file with `-o`")
        raise DiagnosticError(diags) from error


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
