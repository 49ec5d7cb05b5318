"""One try: a placement of the prepared blocks under another policy, and its simulation.

In: what was prepared, the deployment, its load. Out: a report, or why there is no such plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from blockc.compiler import Clock, Prepared, arrange
from blockc.cost.profile import Profile
from blockc.diag import DiagnosticError, Diagnostics, Severity
from blockc.plan import ExecutionPlan
from blockc.search.search import Tried
from blockc.simulate import Targets, Workload, fleet_of, rates_of, report, simulate
from blockc.spec.deployment import Deployment, Policy


def judge_of(
    prepared: Prepared,
    deployment: Deployment,
    load: Workload,
    targets: dict[str, Targets],
    *,
    profile: Profile | None = None,
) -> Callable[[Policy], Tried]:
    """A function that tries a policy. Errors that no policy mends are raised by the first call."""

    def judge(policy: Policy) -> Tried:
        if policy.max_batched_tokens < policy.max_rows:
            return Tried(policy=policy, report=None, problem="a step would have fewer tokens than requests")
        diags = Diagnostics()
        try:
            plan = planned(prepared, replace(deployment, policy=policy), diags)
        except DiagnosticError as error:
            first = next(item for item in error.diagnostics if item.severity is Severity.ERROR)
            return Tried(policy=policy, report=None, problem=f"{first.code.id}: {first.message}")
        rates = rates_of(plan, diags=diags, profile=profile)
        diags.raise_if_errors()
        return Tried(policy=policy, report=report(simulate(fleet_of(plan, rates), load), targets))

    return judge


def planned(prepared: Prepared, deployment: Deployment, diags: Diagnostics) -> ExecutionPlan:
    """The plan of one try. Raises `DiagnosticError` where there is none."""
    return arrange(prepared, deployment, clock=Clock(diags)).plan
