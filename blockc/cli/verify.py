"""``blockc verify PLAN`` says whether every app is served as its model alone would answer.

In: a plan, its zoo, the original model files. Out: a line per app; exit code 1 if any is over its bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockc.cli.options import JsonOption, PlanArgument, ZooOption, zoo_of

if TYPE_CHECKING:
    from blockc.verify import AppReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    plan: PlanArgument,
    zoo: ZooOption = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="DIR",
            help="The directory of the spec; the plan's own if not given.",
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts for each app.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Greedy tokens for each prompt.")] = 16,
    max_error: Annotated[float | None, typer.Option(min=0.0, help="Largest allowed difference of a logit.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare every app with its model run alone through transformers and PEFT."""
    from blockc.cli.report import print_document, reporting
    from blockc.plan import load_plan, require_weights
    from blockc.verify import failed, verify
    from blockc.zoo import Zoo

    with reporting("verify", as_json=as_json):
        compiled = load_plan(plan)
        require_weights(compiled)
        reports = verify(
            compiled,
            Zoo(zoo_of(zoo, plan)),
            root=models if models is not None else plan.resolve().parent,
            prompts=prompts,
            output_tokens=tokens,
            max_error=max_error,
            on_app=lambda report: None if as_json else print(_line(report), flush=True),
        )
        bad = failed(reports)
        if as_json:
            print_document("verify", ok=not bad, apps=[_entry(report) for report in reports])
        elif bad:
            _refuse(list(bad.values()))
    raise typer.Exit(1 if bad else 0)


def _line(report: AppReport) -> str:
    verdict = "ok  " if report.passed else "FAIL"
    return (
        f"{verdict} {report.app:<24} {report.prompts} prompts, greedy {report.agreed}/{report.tokens}"
        f"{f' (+{report.near_ties} near ties)' if report.near_ties else ''}, "
        f"max logit error {report.max_error:.2e} (bound {report.bound:.2e})"
        + (
            ""
            if report.original_error is None
            else f"; {report.original_error:.2e} from its own files, as the policy allows"
        )
    )


def _entry(report: AppReport) -> dict[str, object]:
    return {
        "app": report.app,
        "model": report.model,
        "prompts": report.prompts,
        "tokens": report.tokens,
        "agreed": report.agreed,
        "near_ties": report.near_ties,
        "max_error": report.max_error,
        "bound": report.bound,
        "passed": report.passed,
        "original_error": report.original_error,
    }


def _refuse(bad: list[AppReport]) -> None:
    from blockc.diag import DiagnosticError, Diagnostics

    diags = Diagnostics()
    for report in bad:
        diags.report(
            "BC906",
            f"{report.app} is not served as `{report.model}` alone answers",
            notes=(
                f"max logit error {report.max_error:.2e}, allowed {report.bound:.2e}; "
                f"{report.tokens - report.agreed - report.near_ties} tokens differ beyond near ties",
            ),
            help="the model files may have changed since the plan was compiled: compile again; else report a bug",
        )
    raise DiagnosticError(diags)
