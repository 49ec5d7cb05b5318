"""``blockc serve PLAN`` answers OpenAI-style requests with what a plan holds.

In: a plan and its zoo. Out: one line on stdout with the server's URL once it answers; progress on
stderr. Ends at SIGTERM or Ctrl-C: what is running is finished first, for ``--drain`` seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockc.cli.options import PlanArgument, VarOption, ZooOption, variables_of, zoo_of

if TYPE_CHECKING:
    from blockc.plan import ExecutionPlan
    from blockc.render.page import Page


class LogFormat(StrEnum):
    """How stderr is written."""

    text = "text"
    json = "json"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    plan: PlanArgument,
    zoo: ZooOption = None,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose devices these are, of a plan of several nodes.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; without --keys a loopback one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Keys by tenant: {"tenant": ["sk-...", "sha256:<hex>"]} as JSON, or TOML; read again when it changes.',
        ),
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help='Files called by the names of the `secret("NAME")`s that the plan has as keys.'
        ),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a line of JSON for each request; no prompts, no keys.")
    ] = None,
    allow_adapters: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Let the operator load fine-tunes from below this folder; needs --spec."),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the plan was compiled from, for --allow-adapters.")
    ] = None,
    var: VarOption = None,
    log_format: Annotated[
        LogFormat,
        typer.Option(help="`json`: one object a line on stderr, and one for each request; no prompts, no keys."),
    ] = LogFormat.text,
    otel: Annotated[
        bool, typer.Option("--otel", help="Send spans of requests to OpenTelemetry (pip install 'blockc[otel]').")
    ] = False,
    drain: Annotated[
        float, typer.Option(min=0.0, max=1e8, metavar="SECONDS", help="How long to finish requests at the end.")
    ] = 30.0,
    executor: Annotated[
        str, typer.Option(hidden=True, help="`torch`, or `null` to measure everything else.")
    ] = "torch",
    null_step: Annotated[float, typer.Option(hidden=True, min=0.0, metavar="SECONDS")] = 0.0,
) -> None:
    """Serve a plan over HTTP."""
    import sys

    from blockc_runtime.server.adapters import AdapterOptions
    from blockc_runtime.server.serve import ServeOptions
    from blockc_runtime.server.serve import serve as run

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if executor not in ("torch", "null"):
        raise typer.BadParameter("there are `torch` and `null`", param_hint="--executor")
    if (allow_adapters is None) != (spec is None):
        raise typer.BadParameter("--allow-adapters and --spec are given together", param_hint="--allow-adapters")
    adapters = None
    if allow_adapters is not None and spec is not None:
        if not allow_adapters.is_dir() or not spec.is_file():
            raise typer.BadParameter("there is no such folder, or no such spec", param_hint="--allow-adapters")
        variables_of(var)
        adapters = AdapterOptions(folder=allow_adapters, spec=spec, variables=tuple(var or ()))
    with _refusing(progress, as_json=log_format is LogFormat.json):
        options = ServeOptions(
            plan=plan,
            zoo=zoo_of(zoo, plan),
            node=node,
            host=host,
            port=port,
            keys=keys,
            secrets=secrets,
            audit=audit,
            executor=executor,
            null_step_s=null_step,
            drain_s=drain,
            json_log=log_format is LogFormat.json,
            spans=otel,
            make_page=_page,
            adapters=adapters,
        )
        run(options, ready=lambda url: print(f"serving on {url}", flush=True), progress=progress)


@contextmanager
def _refusing(progress: Callable[[str], None], *, as_json: bool) -> Iterator[None]:
    """What is wrong, in the form of the rest of the log."""
    from blockc.cli.report import exit_code
    from blockc.diag import DiagnosticError
    from blockc_runtime.server.json_log import JsonLog

    try:
        yield
    except DiagnosticError as error:
        if not as_json:
            raise
        log = JsonLog(progress)
        for item in error.diagnostics:
            log.refuse(item)
        raise SystemExit(int(exit_code(error.diagnostics))) from None


def _page(plan: ExecutionPlan) -> Page:
    """What ``/ui`` shows. It is made when it is first asked for: serving does not wait for it."""
    from blockc.render.page import render_page

    return render_page(plan, live=True)
