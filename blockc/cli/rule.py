"""``blockc rule BC401``: what a diagnostic means."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rule")(rule)


def rule(
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="Such as BC401; without: list all.")] = None,
) -> None:
    """Explain a diagnostic, or list them all."""
    from blockc.diag import CODES
    from blockc.diag.explanations import explanation

    if code is None:
        for item in CODES.values():
            print(f"{item.id}  {item.severity.value:<7}  {item.slug:<26}  {item.summary}")
        return
    wanted = code.strip().upper()
    found = CODES.get(wanted) or next((c for c in CODES.values() if c.slug == code.strip()), None)
    if found is None:
        raise typer.BadParameter(f"no diagnostic `{code}`; `blockc rule` lists them", param_hint="CODE")
    print(f"{found.id} {found.slug} ({found.severity.value}): {found.summary}\n")
    print(explanation(found.id))
    if found.id == "BC205":
        from blockc.architectures import ENCODERS, SUPPORTED

        print(f"\nSupported: {', '.join(SUPPORTED)}.\nEncoders: {', '.join(ENCODERS)}.")
