"""``blockc simulate PLAN --trace FILE``: a plan under load, on a virtual clock.

In: a plan, and a trace, or rates. Out: a table on stdout, or one document; with ``--chrome-trace`` a file for Perfetto.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption, PlanArgument, VarOption, variables_of
from blockc.cli.workload import Generator, TraceFormat, load_draw

if TYPE_CHECKING:
    from blockc.diag import Diagnostics
    from blockc.plan import ExecutionPlan
    from blockc.simulate import Fleet, Run, Workload
    from blockc.simulate.moves import Outage
    from blockc.simulate.study import FleetStudy
    from blockc.spec.deployment import Deployment

_EXPECT = "expect"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate_)


def simulate_(
    plan: PlanArgument,
    trace: Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="Requests that were recorded.")] = None,
    format_: Annotated[
        TraceFormat | None, typer.Option("--format", help="Of the trace; its first line says, if not given.")
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option("--spec", metavar="SPEC", help="The plan's spec: its `slo`, its `expect`, its `traffic` as load."),
    ] = None,
    var: VarOption = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-9, max=1e6, help="Generated requests a second, of all apps.")
    ] = None,
    duration: Annotated[float, typer.Option(min=1e-9, max=1e8, help="Seconds of generated load.")] = 600.0,
    cv: Annotated[float, typer.Option(min=0.01, max=100.0, help="Of gaps: 1 is Poisson, more comes in bursts.")] = 1.0,
    prompt: Annotated[int, typer.Option(min=1, max=10**8, help="Tokens of a generated prompt, on average.")] = 512,
    output: Annotated[int, typer.Option(min=1, max=10**8, help="Tokens of a generated answer, on average.")] = 128,
    turns: Annotated[
        float, typer.Option(min=1.0, max=1e6, help="Turns of a generated conversation, on average.")
    ] = 1.0,
    think: Annotated[float, typer.Option(min=0.0, max=1e8, help="Seconds between an answer and the next turn.")] = 10.0,
    skew: Annotated[float, typer.Option(min=0.0, max=100.0, help="App k gets a share of (k + 1)^-SKEW.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    speed: Annotated[float, typer.Option(min=1e-9, max=1e9, help="So many times the load's own rate.")] = 1.0,
    first: Annotated[float | None, typer.Option(min=1e-9, max=1e8, help="Only the first seconds of the load.")] = None,
    ttft: Annotated[
        float | None, typer.Option(min=0.0, max=1e8, help="Target in seconds of apps without an `slo`.")
    ] = None,
    tpot: Annotated[float | None, typer.Option(min=0.0, max=1e8, help="As --ttft.")] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Rates that `blockc profile` measured.")
    ] = None,
    cost_scale: Annotated[
        float, typer.Option(min=1e-6, max=1e6, help="Every step takes so many times its price.")
    ] = 1.0,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="NAMES",
            help="Also `pm`, `ps`, `no-sharing`, `no-batching`, `no-cache`, `blind`, `no-roles`, `hand-over`, "
            "`random`.",
        ),
    ] = None,
    equal: Annotated[
        bool, typer.Option("--equal", help="All on every device of the cluster, with replicas by one rule for all.")
    ] = False,
    robust: Annotated[
        bool, typer.Option("--robust", help="Also at 1.5 times the rates, 1.5 times the costs, and both.")
    ] = False,
    drain: Annotated[
        str | None,
        typer.Option("--drain", metavar="DEVICE@SECONDS", help="Its instance takes nothing new from then on."),
    ] = None,
    fail: Annotated[
        str | None, typer.Option("--fail", metavar="DEVICE@SECONDS", help="Its instance is lost then, with its KV.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="So many seeds, and intervals of 95 %.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes, where there are several runs.")] = 1,
    shed: Annotated[
        bool | None,
        typer.Option(
            "--shed/--no-shed",
            help="Leave out what the plan has no place for, or not; if not given: of the spec's own traffic only.",
        ),
    ] = None,
    fail_on: Annotated[
        str | None, typer.Option("--fail-on", metavar="expect", help="Exit code 1 if an `expect` does not hold.")
    ] = None,
    chrome_trace: Annotated[
        Path | None, typer.Option("--chrome-trace", metavar="FILE", help="Write every step, for ui.perfetto.dev.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a plan under load without any device, and say what each app's users would see."""
    from blockc.cli.report import print_document, reporting, show
    from blockc.cost.profile import read_profile
    from blockc.diag import Diagnostics
    from blockc.diag.json import diagnostics_document
    from blockc.plan import load_plan
    from blockc.simulate import (
        Targets,
        check_expectations,
        faster,
        fleet_of,
        promised,
        rates_of,
        robust_cases,
        study_each,
        targets_of,
    )
    from blockc.simulate import first as first_seconds
    from blockc.simulate.baselines import baseline as made
    from blockc.simulate.equal import equal_fleets, judge_of

    names = _baselines(baseline, equal=equal)
    if fail_on is not None:
        _check_fail_on(fail_on, spec)
    generator = Generator(
        rate=rate, seconds=duration, cv=cv, prompt=prompt, output=output, turns=turns, think=think, skew=skew
    )
    if trace is None and rate is None and spec is None:
        raise typer.BadParameter(
            "there is no load: give --trace, --rate, or --spec with `traffic`", param_hint="--trace"
        )
    diags = Diagnostics()
    with reporting("simulate", as_json=as_json):
        loaded = load_plan(plan)
        deployment = None if spec is None else _deployment(loaded, spec, variables_of(var), diags)
        draw = load_draw([app.address for app in loaded.apps], deployment, trace, format_, generator, diags)
        measured = None if profile is None else read_profile(profile)
        rates = rates_of(loaded, diags=diags, cost_scale=cost_scale, profile=measured)
        diags.raise_if_errors()
        targets = {
            app.address: Targets(ttft_s=ttft if app.ttft_s is None else app.ttft_s, tpot_s=tpot) for app in loaded.apps
        }
        if deployment is not None:
            targets |= {app: own for app, own in targets_of(deployment).items() if own.is_any}

        sheds = trace is None and rate is None if shed is None else shed
        parts = [app.served if sheds else 1.0 for app in loaded.apps]

        def workload(number: int) -> Workload:
            drawn = faster(draw(number), speed)
            return promised(drawn if first is None else first_seconds(drawn, first), parts, number)

        if equal:
            fleets = equal_fleets(loaded, rates, names, workload(seed), judge_of(workload(seed), targets), diags=diags)
        else:
            others = [made(name, loaded, rates, diags=diags) for name in names]
            fleets = (fleet_of(loaded, rates), *(fleet for fleet in others if fleet is not None))
        if drain is not None or fail is not None:
            fleets = _with_outages(fleets, drain, fail, diags)
        diags.raise_if_errors()
        ours = robust_cases(fleets[0], workload) if robust else ((fleets[0], workload),)
        cases = (*ours, *((fleet, workload) for fleet in fleets[1:]))
        found = study_each(cases, targets, seed=seed, repeats=repeat, keeps_moments=chrome_trace is not None, jobs=jobs)
        if chrome_trace is not None and found[0].run is not None:
            _write_chrome_trace(found[0].run, chrome_trace, diags)
        if fail_on is not None and deployment is not None:
            check_expectations(deployment, loaded, found[0].reports, diags=diags)
        diags.raise_if_errors()
    if as_json:
        print_document("simulate", ok=True, fleets=_document(found), diagnostics=diagnostics_document(diags))
    else:
        show(diags)
        print(_text(found), end="")


def _baselines(given: str | None, *, equal: bool) -> tuple[str, ...]:
    from blockc.simulate.baselines import BASELINES
    from blockc.simulate.equal import RANDOM

    wanted = [name.strip() for name in given.split(",")] if given else []
    if RANDOM in wanted and not equal:
        raise typer.BadParameter(f"`{RANDOM}` places replicas by chance: give --equal, too", param_hint="--baseline")
    unknown = [name for name in wanted if name not in (*BASELINES, RANDOM)]
    if unknown:
        raise typer.BadParameter(
            f"no baseline `{unknown[0]}`; there are {', '.join((*BASELINES, RANDOM))}", param_hint="--baseline"
        )
    return tuple(dict.fromkeys(wanted))


def _with_outages(
    fleets: Sequence[Fleet], drain: str | None, fail: str | None, diags: Diagnostics
) -> tuple[Fleet, ...]:
    """All fleets, those with the instances of the first one with its outages. Reports what is none (BC101)."""
    from dataclasses import replace

    from blockc.simulate.moves import outage_of

    names = [item.name for item in fleets[0].instances]
    outages: list[Outage] = []
    for text, is_failure in ((drain, False), (fail, True)):
        found = None if text is None else outage_of(names, text, is_failure=is_failure)
        if isinstance(found, str):
            diags.report("BC101", found, help="such as `--drain node/device@60`, with a device of the plan")
        elif found is not None and all(item.instance != found.instance for item in outages):
            outages.append(found)
    return tuple(
        replace(item, outages=tuple(outages)) if [own.name for own in item.instances] == names else item
        for item in fleets
    )


def _check_fail_on(fail_on: str, spec: Path | None) -> None:
    if fail_on != _EXPECT:
        raise typer.BadParameter(f"`{fail_on}` is nothing to fail on; there is `{_EXPECT}`", param_hint="--fail-on")
    if spec is None:
        raise typer.BadParameter("the spec holds what is expected: name it with --spec", param_hint="--fail-on")


def _deployment(plan: ExecutionPlan, spec: Path, variables: dict[str, str], diags: Diagnostics) -> Deployment:
    """The spec, which must have the plan's apps."""
    import os

    from blockc.spec import load

    deployment = load(spec, variables=variables, environ=os.environ).require()
    apps = {app.address for app in plan.apps}
    for app in deployment.apps:
        if app.address not in apps:
            diags.report(
                "BC101",
                f"the plan has no app `{app.address}`",
                at=app.span,
                help="name the spec that the plan was made of, or compile this one",
            )
    diags.raise_if_errors()
    return deployment


def _write_chrome_trace(run: Run, path: Path, diags: Diagnostics) -> None:
    import json

    from blockc.simulate import chrome_trace

    try:
        with path.open("w", encoding="utf-8") as file:
            file.write("[\n")
            for number, event in enumerate(chrome_trace(run)):
                file.write((",\n" if number else "") + json.dumps(event, separators=(",", ":")))
            file.write("\n]\n")
    except OSError as error:
        diags.report("BC003", f"cannot write {path}: {error.strerror}", help="name another file")


def _text(found: Sequence[FleetStudy]) -> str:
    from blockc.simulate.text import render_comparison, render_report

    parts = [render_report(found[0].reports[0])]
    if len(found) > 1 or len(found[0].reports) > 1:
        parts.append(render_comparison(found))
    return "\n".join(parts)


def _document(found: Sequence[FleetStudy]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from blockc.simulate.text import report_document

    return [
        {
            "label": item.reports[0].label,
            "reports": [report_document(report) for report in item.reports],
            "figures": {name: asdict(figure) for name, figure in item.figures.items()},
        }
        for item in found
    ]
