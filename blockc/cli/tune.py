"""``blockc tune SPEC``: better values for the free knobs of a spec, by the simulator.

In: a spec, and its traffic, a trace or a rate. Out: a table of what was tried, and how the best is written. The spec is
not changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import (
    JsonOption,
    SpecArgument,
    TargetChoice,
    TargetOption,
    VarOption,
    ZooOption,
    variables_of,
    zoo_of,
)
from blockc.cli.workload import Generator, TraceFormat, load_draw

if TYPE_CHECKING:
    from blockc.search import Found
    from blockc.simulate import Workload
    from blockc.spec.deployment import Deployment, Policy

_MOST_REQUESTS = 5000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tune")(tune)


def tune(
    spec: SpecArgument,
    trace: Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="Requests that were recorded.")] = None,
    format_: Annotated[
        TraceFormat | None, typer.Option("--format", help="Of the trace; its first line says, if not given.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-9, max=1e6, help="Generated requests a second, of all apps.")
    ] = None,
    speed: Annotated[float, typer.Option(min=1e-9, max=1e9, help="So many times the load's own rate.")] = 1.0,
    requests: Annotated[
        int, typer.Option(min=1, help="So many of the load's first requests judge a try.")
    ] = _MOST_REQUESTS,
    tries: Annotated[int, typer.Option(min=1, max=10_000, help="At most, the spec's own values included.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Rates that `blockc profile` measured.")
    ] = None,
    target: TargetOption = None,
    zoo: ZooOption = None,
    var: VarOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try other step limits, pages and residency against the simulator, and say which values are best."""
    import os

    from blockc.cli.report import print_document, reporting, show
    from blockc.cost.profile import read_profile
    from blockc.diag import Diagnostics
    from blockc.diag.json import diagnostics_document
    from blockc.search import free_knobs, search
    from blockc.search.judge import judge_of
    from blockc.simulate import faster, first, targets_of
    from blockc.spec import load as load_spec

    diags = Diagnostics()
    with reporting("tune", as_json=as_json):
        deployment = load_spec(Path(spec), variables=variables_of(var), environ=os.environ).require()
        addresses = [app.address for app in deployment.apps]
        draw = load_draw(addresses, deployment, trace, format_, Generator(rate=rate), diags)
        diags.raise_if_errors()
        load: Workload = faster(draw(seed), speed)
        if len(load.arrivals) > requests:
            load = first(load, load.arrivals[requests - 1].at_s)
        prepared = _prepared(deployment, target, zoo_of(zoo, Path(spec)), diags)
        judge = judge_of(
            prepared, deployment, load, targets_of(deployment),
            profile=None if profile is None else read_profile(profile),
        )  # fmt: skip
        found = search(deployment.policy, free_knobs(deployment.policy), judge, tries=tries)
        diags.raise_if_errors()
    if as_json:
        print_document("tune", ok=True, **_document(found, deployment.policy), diagnostics=diagnostics_document(diags))
    else:
        show(diags)
        print(_text(found, deployment.policy, load), end="")


def _prepared(deployment: Deployment, target: TargetChoice | None, zoo_root: Path, diags: Any) -> Any:
    """Everything before placement, once."""
    from blockc.compiler import Clock, prepare
    from blockc.spec.weights import check_weights
    from blockc.target import check_target
    from blockc.zoo import Zoo

    chosen = check_target(deployment, None if target is None else target.value, diags=diags)
    check_weights(deployment, diags, configuration_only=chosen == "sim")
    diags.raise_if_errors()
    zoo = None if chosen == "sim" else Zoo(zoo_root, create=True)
    return prepare(deployment, zoo=zoo, target=chosen, clock=Clock(diags))


def _text(found: Found, given: Policy, load: Workload) -> str:
    from blockc.search import written

    lines = [_head(len(found.tried), load)]
    rows = [("", *(knob.name for knob in _knobs(given)), "in time", "TTFT p95", "TPOT p95", "end p95", "tokens/s")]
    rows += [("*" if item is found.best else "", *_cells(item, given)) for item in found.tried]
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    if not found.is_done:
        lines.append(f"more may be found: `--tries` ended the search at {len(found.tried)}")
    block = written(found.best.policy, given)
    lines.append(f"best: write `{block}`" if block else "the spec's own values are the best of these")
    return "\n".join(lines) + "\n"


def _head(tries: int, load: Workload) -> str:
    from blockc.render.units import counted

    return f"TUNED  {counted(tries, 'plan')} under {counted(len(load.arrivals), 'request')}: {load.source}"


def _knobs(given: Policy) -> Any:
    from blockc.search import free_knobs

    return free_knobs(given)


def _cells(item: Any, given: Policy) -> tuple[str, ...]:
    from blockc.search.knobs import value_text
    from blockc.simulate.text import seconds

    values = tuple(value_text(knob.name, knob.read(item.policy)) for knob in _knobs(given))
    if item.report is None:
        return (*values, f"no plan: {item.problem}")
    total = item.report.total
    times = tuple("-" if part is None else seconds(part.p95_s) for part in (total.ttft, total.tpot, total.e2e))
    in_time = "-" if total.attainment is None else f"{100 * total.attainment:.1f} %"
    return (*values, in_time, *times, f"{item.report.output_tokens_per_s:.0f}")


def _document(found: Found, given: Policy) -> dict[str, Any]:
    from blockc.search import written
    from blockc.simulate.text import report_document

    def one(item: Any) -> dict[str, Any]:
        return {
            "knobs": {knob.name: knob.read(item.policy) for knob in _knobs(given)},
            "problem": item.problem,
            "total": None if item.report is None else report_document(item.report)["total"],
            "tokens_per_s": None if item.report is None else item.report.output_tokens_per_s,
        }

    return {
        "tried": [one(item) for item in found.tried],
        "best": one(found.best)["knobs"],
        "write": written(found.best.policy, given),
        "done": found.is_done,
    }
