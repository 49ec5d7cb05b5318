"""``blockc compile SPEC -o plan.json``: from a spec to a plan, weights to the zoo.

In: a spec. Out: the plan file, one line on stdout (or with ``--json`` one document), progress on stderr. Nothing is
written where a stage found errors, except tensors in the zoo that no plan names, and what ``--dump-after`` asked for;
with ``--target sim`` no zoo is made.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.dump import DumpOption, DumpToOption
from blockc.cli.options import (
    JsonOption,
    ProgressMode,
    ProgressOption,
    SpecArgument,
    TargetChoice,
    TargetOption,
    VarOption,
    ZooOption,
    variables_of,
    zoo_of,
)

if TYPE_CHECKING:
    from blockc.compiler import Compiled
    from blockc.target import Target

_ASSUMED = "\nno weights were read: the plan can be looked at and simulated, not served"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compile")(compile_)


def compile_(
    spec: SpecArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the plan goes.")] = Path(
        "plan.json"
    ),
    target: TargetOption = None,
    zoo: ZooOption = None,
    var: VarOption = None,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="APP[:PARENT]=FOLDER", help="One more fine-tune, and the app that it answers."),
    ] = None,
    before: Annotated[
        Path | None,
        typer.Option("--from", metavar="PLAN", help="The plan that runs now: change no more of it than is worth it."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Place by rates that `blockc profile` measured, not by the catalogue's."),
    ] = None,
    dump_after: DumpOption = None,
    dump_to: DumpToOption = Path("-"),
    progress: ProgressOption = ProgressMode.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Compile a spec: trace, share, place, and write the plan."""
    from blockc.cli.dump import stage_dumps
    from blockc.cli.progress import listening
    from blockc.cli.report import exit_code, print_document, reporting, show
    from blockc.diag.json import diagnostics_document
    from blockc.plan import write_plan
    from blockc.zoo import publish

    on_result = stage_dumps(dump_after or [], dump_to, as_json=as_json)
    resting = _collector_resting(target == TargetChoice.sim)
    with reporting("compile", as_json=as_json), listening(progress) as heard, resting:
        _check_output(output, Path(spec))
        compiled, found, sources = compile_file(
            Path(spec),
            zoo_of(zoo, output),
            variables_of(var),
            additions=add or (),
            target=target.value if target is not None else None,
            profile=profile,
            before=before,
            on_stage=heard.on_stage,
            on_result=on_result,
            on_bytes=heard.on_bytes,
        )
        if compiled.zoo is None:
            write_plan(compiled.plan, output)
        else:
            publish(compiled.plan, output, compiled.zoo)
    if as_json:
        print_document(
            "compile", ok=True, plan=str(output), summary=_summary(compiled), diagnostics=diagnostics_document(found)
        )
    else:
        show(found, sources)
        print(_sentence(compiled, output))
    raise typer.Exit(int(exit_code(found)))


@contextmanager
def _collector_resting(resting: bool) -> Iterator[None]:
    """No garbage collection: a sixth of the time of a 70B plan without weights (9.2 instead of 10.9 CPU seconds).

    Only where no tensor can be part of the garbage. What is alive afterwards is frozen: the collector, once awake, and
    the interpreter, when it ends, would walk all of it (4 seconds).
    """
    if resting:
        gc.disable()
    try:
        yield
    finally:
        if resting:
            gc.freeze()
        gc.enable()


def _check_output(output: Path, spec: Path) -> None:
    """Refuse what cannot become a plan before anything is done, and never write over a spec."""
    from blockc.diag import DiagnosticError, Diagnostics

    diags = Diagnostics()
    if output.is_dir():
        diags.report(
            "BC003", f"cannot write {output}: it is a folder", help=f"name a file in it: `-o {output / 'plan.json'}`"
        )
    elif output.suffix == ".blk" or (output.exists() and spec.exists() and output.samefile(spec)):
        diags.report(
            "BC003", f"cannot write {output}: it is a spec, not a plan", help="name another file: `-o plan.json`"
        )
    if diags.has_errors:
        raise DiagnosticError(diags)


def compile_file(
    spec: Path,
    zoo_root: Path,
    variables: dict[str, str],
    *,
    additions: Sequence[str] = (),
    target: Target | None = None,
    profile: Path | None = None,
    before: Path | None = None,
    on_stage: Any = lambda name, seconds: None,
    on_result: Any = lambda name, result: None,
    on_bytes: Any = lambda model, done, total: None,
) -> tuple[Compiled, Any, Any]:
    """Load and compile; returns the result, the warnings, and the texts they point into.

    ``target`` ``"sim"`` needs no weights and makes no zoo. ``additions``: see `blockc.spec.additions`. ``profile``,
    ``before``: files with measured rates, and with the plan that this one is to follow.
    Raises :class:`blockc.diag.DiagnosticError` with everything that is wrong.
    """
    import os

    from blockc.diag import DiagnosticError, Diagnostics
    from blockc.diag.suppress import suppress
    from blockc.spec import load
    from blockc.spec.additions import with_additions
    from blockc.spec.lint import tidy
    from blockc.spec.weights import check_weights
    from blockc.target import check_target
    from blockc.zoo import Zoo

    result = load(spec, variables=variables, environ=os.environ)
    deployment = result.require()
    diags = Diagnostics()
    try:
        deployment = with_additions(deployment, additions, diags=diags)
        # What `blockc check` says, before torch is imported.
        target = check_target(deployment, target, diags=diags)
        check_weights(deployment, diags, configuration_only=target == "sim")
        diags.raise_if_errors()
        from blockc.compiler import compile_deployment
        from blockc.cost.profile import read_profile
        from blockc.plan import load_plan

        earlier = None if before is None else load_plan(before)
        measured = None if profile is None else read_profile(profile)

        zoo = None if target == "sim" else Zoo(zoo_root, create=True)
        compiled = compile_deployment(
            deployment,
            zoo=zoo,
            target=target,
            profile=measured,
            before=earlier,
            diags=diags,
            on_stage=on_stage,
            on_result=on_result,
            on_bytes=on_bytes,
        )
        if deployment.policy.roles == "auto":
            from blockc.simulate.roles import with_roles

            plan = with_roles(deployment, compiled.plan, profile=measured, diags=diags)
            compiled = replace(compiled, plan=plan)
        if any(item.slo_attainment is not None for item in deployment.expect):
            from blockc.simulate.judged import judge_expectations

            judge_expectations(deployment, compiled.plan, diags=diags)
            diags.raise_if_errors()
    except DiagnosticError as error:
        raise DiagnosticError(tidy(Diagnostics(items=[*result.diagnostics, *error.diagnostics]))) from None
    remaining = suppress(diags, result.suppressions)
    return compiled, tidy(Diagnostics(items=[*result.diagnostics, *remaining])), result.sources


def _summary(compiled: Compiled) -> dict[str, Any]:
    plan = compiled.plan
    return {
        "target": plan.target,
        "apps": len(plan.apps),
        "chains": len(plan.chains),
        "segments": len(plan.segments),
        "blocks": len(plan.blocks),
        "parameters": {name: model.parameters for name, model in plan.models.items() if model.parameters is not None},
        "bytes": plan.baselines.model_dump(mode="json"),
        "solver": plan.solver.model_dump(mode="json"),
        "stages_s": {name: round(seconds, 3) for name, seconds in compiled.stages.items()},
    }


def _sentence(compiled: Compiled, output: Path) -> str:
    from blockc.render import format_bytes

    plan = compiled.plan
    baselines = plan.baselines
    return (
        f"{output}: {len(plan.apps)} apps on {len(plan.chains)} chains, {len(plan.segments)} segments; "
        f"{format_bytes(baselines.ours_bytes)} of weights "
        f"(one model each: {format_bytes(baselines.pm_bytes)}, LoRA sharing only: {format_bytes(baselines.ps_bytes)})"
        f"{_ASSUMED if plan.target == 'sim' else ''}"
    )
