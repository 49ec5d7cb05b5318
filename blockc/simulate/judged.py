"""What a spec expects of its plan under its own traffic, judged when it is compiled.

In: a deployment and its plan. Out: BC502 for each expectation that does not hold; BC507 where none can be judged,
because nothing is known of how fast a device is. Judged are ten minutes of traffic, or 20,000 requests, whichever is
less, of what the plan promises to serve (`promised`), by the rates of the catalogue; `blockc simulate --fail-on expect`
takes any load and a profile.
"""

from __future__ import annotations

from typing import Final

from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan
from blockc.simulate.expectations import check_expectations
from blockc.simulate.fleet import fleet_of, rates_of
from blockc.simulate.promised import promised
from blockc.simulate.recorded import has_load, spec_draw
from blockc.simulate.report import report, targets_of
from blockc.simulate.simulate import simulate
from blockc.simulate.workload import Workload, first
from blockc.spec.deployment import Deployment

_SECONDS: Final = 600.0
_REQUESTS: Final = 20_000
# Where the spec says nothing: as `blockc simulate` has it.
_PROMPT_TOKENS: Final = 512
_OUTPUT_TOKENS: Final = 128


def judge_expectations(deployment: Deployment, plan: ExecutionPlan, *, diags: Diagnostics) -> None:
    """Nothing where the spec expects nothing of its load, or names none."""
    expected = [item for item in deployment.expect if item.slo_attainment is not None]
    if not expected or not has_load(deployment):
        return
    unknown = Diagnostics()
    rates = rates_of(plan, diags=unknown)
    if unknown.has_errors:
        diags.report(
            "BC507",
            f"`slo_attainment` was not judged: {next(iter(unknown)).message}",
            at=expected[0].span,
            help="measure one: `blockc profile PLAN`, then `blockc simulate PLAN --spec SPEC --profile FILE "
            "--fail-on expect`",
        )
        return
    load = own_load(deployment, plan, seconds=_SECONDS, requests=_REQUESTS, diags=diags)
    found = report(simulate(fleet_of(plan, rates), load), targets_of(deployment))
    check_expectations(deployment, plan, (found,), diags=diags)


def own_load(
    deployment: Deployment, plan: ExecutionPlan, *, seconds: float, requests: int, diags: Diagnostics
) -> Workload:
    """What a plan promises to serve of its spec's traffic: for so long, or so many requests, whichever is less."""
    parts = {app.address: app.served for app in plan.apps}
    rate_rps = sum(float(app.traffic.rate_rps or 0) * parts[app.address] for app in deployment.apps)
    seconds = min(seconds, requests / rate_rps) if rate_rps else seconds
    draw = spec_draw(
        deployment, list(parts), seconds=seconds, prompt_tokens=_PROMPT_TOKENS,
        output_tokens=_OUTPUT_TOKENS, cv=1.0, turns=1.0, think_s=10.0, diags=diags,
    )  # fmt: skip
    drawn = draw(0)
    load = promised(drawn, list(parts.values()), 0)
    if len(load.arrivals) <= requests:
        return load
    return promised(first(drawn, load.arrivals[requests].at_s), list(parts.values()), 0)
