"""Which lines a plan keeps to with little to spare: memory, time, targets, rules.

In: a plan. Out: bounds, the tightest first. Everything follows from what the plan holds: what an instance is expected
to be busy for, what devices hold beside KV pages, what each app waits for by the cost model. A rule has no amount; it
is as tight as the devices that it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from blockc.plan import ExecutionPlan, InstanceEntry, RuleEntry
from blockc.render.units import format_bytes

TIGHT: Final = 0.9  # of what is allowed

Kind = Literal["memory", "time", "cadence", "slo", "pin", "apart", "isolation", "replicas"]
_KIND: Final[dict[str, Kind]] = {
    "pin": "pin", "apart": "apart", "alone": "isolation", "replicas": "replicas", "nodes": "replicas",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """``share``: of what is allowed, what is taken; None: it has no amount. The others are in words."""

    kind: Kind
    line: str
    has: str
    limit: str
    left: str
    share: float | None

    @property
    def is_tight(self) -> bool:
        """Whether it would break soon."""
        return self.share is not None and self.share >= TIGHT


def bounds_of(plan: ExecutionPlan) -> list[Bound]:
    """All, the tightest first, those without an amount last."""
    found = [*_memory(plan), *_times(plan), *_targets(plan), *(_rule(plan, rule) for rule in plan.rules)]
    return sorted(found, key=lambda bound: (1.0 if bound.share is None else -bound.share, bound.kind, bound.line))


def _memory(plan: ExecutionPlan) -> Iterator[Bound]:
    """KV pages get what is left: what they need at least is what one sequence of each chain takes, and not said."""
    used = {device for instance in plan.instances for device in instance.devices}
    for entry in plan.memory:
        if entry.device in used:
            fixed = entry.used_bytes - entry.kv_bytes
            yield Bound(
                kind="memory",
                line=plan.devices[entry.device].address,
                has=f"{format_bytes(fixed)} beside KV pages",
                limit=format_bytes(entry.capacity_bytes),
                left=f"{format_bytes(entry.capacity_bytes - fixed)}, for KV pages",
                share=fixed / max(1, entry.capacity_bytes),
            )


def _times(plan: ExecutionPlan) -> Iterator[Bound]:
    for instance in plan.instances:
        load = instance.load
        if load is None or not load.limit:
            continue
        busy = load.traffic + load.sweeps
        yield Bound(
            kind="time",
            line=_place(plan, instance),
            has=f"busy {busy:.0%} ({load.sweeps:.0%} of it sweeps of weights)",
            limit=f"{load.limit:.0%}",
            left=f"{max(0.0, load.limit - busy):.0%} of its time",
            share=busy / load.limit,
        )
        yield from _cadence(plan, instance)


def _cadence(plan: ExecutionPlan, instance: InstanceEntry) -> Iterator[Bound]:
    """Every segment runs once in it: the app with the tightest target for a token sets it."""
    load = instance.load
    wanted = [(app.tpot_s, app.address) for app in plan.apps if app.chain in instance.chains and app.tpot_s is not None]
    if load is None or load.cadence_s is None or not wanted:
        return
    target_s, address = min(wanted)
    yield Bound(
        kind="cadence",
        line=f"{_place(plan, instance)}, by {address}",
        has=f"every {_ms(load.cadence_s)}",
        limit=_ms(target_s),
        left=_ms(max(0.0, target_s - load.cadence_s)),
        share=load.cadence_s / target_s,
    )


def _targets(plan: ExecutionPlan) -> Iterator[Bound]:
    routes = {route.chain: route for route in plan.routes}
    for app in plan.apps:
        route = routes.get(app.chain)
        if route is None:
            continue
        for name, expected_s, target_s in (("ttft", route.ttft_s, app.ttft_s), ("tpot", route.tpot_s, app.tpot_s)):
            if expected_s is not None and target_s is not None:
                yield Bound(
                    kind="slo",
                    line=f"{name} of {app.address}",
                    has=f"{_ms(expected_s)} expected",
                    limit=_ms(target_s),
                    left=_ms(max(0.0, target_s - expected_s)),
                    share=expected_s / target_s,
                )


def _rule(plan: ExecutionPlan, rule: RuleEntry) -> Bound:
    own = [instance for instance in plan.instances if set(instance.chains) & set(rule.chains)]
    devices = sorted({device for instance in own for device in instance.devices})
    on = ", ".join(plan.devices[device].address for device in devices[:4]) + (", ..." if len(devices) > 4 else "")
    kind = _KIND[rule.kind]
    if kind == "replicas":
        places = {plan.devices[device].node for device in devices} if rule.kind == "nodes" else own
        noun = "nodes" if rule.kind == "nodes" else "instances"
        spare = len(places) - rule.count
        return Bound(
            kind=kind, line=rule.text, has=f"{len(places)} {noun}", limit=f"at least {rule.count}",
            left=str(max(0, spare)), share=rule.count / max(1, len(places)),
        )  # fmt: skip
    if kind == "apart":
        return Bound(kind=kind, line=rule.text, has=f"on {on}", limit="no device in common", left="holds", share=None)
    fullest = max((_fullness(plan, instance) for instance in own), default=0.0)
    limit = "these devices only" if kind == "pin" else "nobody else's apps there"
    return Bound(
        kind=kind, line=rule.text, has=f"on {on}, {fullest:.0%} full", limit=limit,
        left=f"{max(0.0, 1 - fullest):.0%} of the fullest", share=fullest,
    )  # fmt: skip


def _fullness(plan: ExecutionPlan, instance: InstanceEntry) -> float:
    """Of an instance's time or memory, whichever is scarcer."""
    memory = [
        (entry.used_bytes - entry.kv_bytes) / max(1, entry.capacity_bytes)
        for entry in plan.memory
        if entry.device in instance.devices
    ]
    load = instance.load
    time = (load.traffic + load.sweeps) / load.limit if load is not None and load.limit else 0.0
    return max((time, *memory))


def _place(plan: ExecutionPlan, instance: InstanceEntry) -> str:
    first, *more = [plan.devices[device].address for device in instance.devices]
    return f"{first} and {len(more)} more" if more else first


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
