"""What a spec asks of placement has to hold together, as far as that is seen without models.

In: typed blocks. Out: BC108 for what is missing beside something else, BC109 for an order that says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockc.diag import Diagnostics, Label, Span
from blockc.spec.cluster import devices_in
from blockc.spec.validate import Typed


def check_placing(
    clusters: Sequence[Typed], tenants: Sequence[Typed], policies: Sequence[Typed], *, diags: Diagnostics
) -> None:
    """Check the apps' replicas, and what there is to be little of."""
    for policy in policies:
        solver = policy.one("solver")
        goals = None if solver is None else solver.get("objective")
        if solver is not None and isinstance(goals, tuple):
            _check_objective(goals, solver.spans["objective"], clusters, diags)
    for app in (app for tenant in tenants for app in tenant.all("app")):
        if "spread" in app.given and "replicas" not in app.given:
            diags.report(
                "BC108",
                f"`{app.name}` has a `spread` and no `replicas`",
                at=app.spans.get("spread", app.header),
                help="say how many there are to be, such as `replicas = 2`",
            )


def _check_objective(goals: tuple[str, ...], at: Span, clusters: Sequence[Typed], diags: Diagnostics) -> None:
    twice = next((goal for place, goal in enumerate(goals) if goal in goals[:place]), None)
    if twice is not None or not goals:
        message = "an `objective` without anything" if twice is None else f"`{twice}` stands twice in `objective`"
        diags.report("BC109", message, at=at, help="name each thing once, such as `[devices, peak_load]`")
        return
    later = next((goal for goal in goals if goal in ("communication", "memory")), None)
    if later is not None and not {"devices", "cost"} & set(goals[: goals.index(later)]):
        diags.report(
            "BC109",
            f"`{later}` stands before `devices` or `cost` in `objective`",
            at=at,
            help=f"it decides between plans that are equal otherwise: `[devices, {later}]`",
        )
    free = [device for device in devices_in(clusters) if "price" not in device.given]
    if "cost" in goals and free:
        more = f" ({len(free)} have none)" if len(free) > 1 else ""
        diags.report(
            "BC108",
            f"the device `{free[0].name}` has no `price`{more}, and `objective` names `cost`",
            at=free[0].header,
            secondary=(Label(span=at, text="asked for here"),),
            help="say what it costs, such as `price = 2.50 / 1h`",
        )
