"""``blockc check SPEC`` says whether a spec is right.

In: a spec. Out: its problems on stderr, or with ``--json`` one document. Reads spec files and
looks at the folders that they name; reads no tensor and imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption, SpecArgument, TargetChoice, TargetOption, VarOption, variables_of

if TYPE_CHECKING:
    from blockc.spec import Deployment


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("check")(check)


def check(
    spec: SpecArgument,
    var: VarOption = None,
    files: Annotated[bool, typer.Option("--files/--no-files", help="Look at the folders of local models.")] = True,
    target: TargetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a spec, and that its models are there.

    Names, types, units; and that the folders of local models hold what is needed.
    """
    import os

    from blockc.cli.report import exit_code, print_document, show
    from blockc.diag import Diagnostics
    from blockc.diag.json import diagnostics_document
    from blockc.diag.suppress import suppress
    from blockc.spec import load
    from blockc.spec.lint import tidy
    from blockc.spec.weights import check_weights
    from blockc.target import check_target

    result = load(Path(spec), variables=variables_of(var), environ=os.environ)
    found = result.diagnostics
    if result.deployment is not None and files:
        seen = Diagnostics()
        if target is not None:
            check_target(result.deployment, target.value, diags=seen)
        check_weights(result.deployment, seen, configuration_only=target == TargetChoice.sim)
        remaining = suppress(seen, result.suppressions)
        found = tidy(Diagnostics(items=[*found, *remaining]))
    ok = not found.has_errors
    if as_json:
        print_document(
            "check",
            ok=ok,
            deployment=_summary(result.deployment) if result.deployment else None,
            diagnostics=diagnostics_document(found),
        )
    else:
        show(found, result.sources)
        if ok and result.deployment is not None:
            print(_sentence(result.deployment))
    raise typer.Exit(int(exit_code(found)))


def _summary(deployment: Deployment) -> dict[str, Any]:
    return {
        "spec": deployment.spec_file,
        "digest": deployment.digest,
        "bases": list(deployment.bases),
        "fine_tunes": list(deployment.fine_tunes),
        "devices": [device.address for device in deployment.cluster.devices],
        "apps": [app.address for app in deployment.apps],
    }


def _sentence(deployment: Deployment) -> str:
    counted = (
        (len(deployment.apps), "app"),
        (len(deployment.tenants), "tenant"),
        (len(deployment.fine_tunes), "fine-tune"),
        (len(deployment.bases), "base"),
        (len(deployment.cluster.devices), "device"),
    )
    words = ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counted)
    return f"{deployment.spec_file}: ok ({words})"
