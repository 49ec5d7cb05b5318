"""What a plan is to a simulation: instances, each with limits, work and rates of its own.

In: a plan. Out: a fleet, in the plan's own arrangement; `baselines.py` has others. Invariant: indices of apps, chains
and KV groups are the plan's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from blockc.cost import DeviceRates, StepPricer, catalogue_rates, cell_rates, node_link, plan_work, slower, stage_works
from blockc.cost.hops import stage_links
from blockc.cost.profile import Profile
from blockc.cost.rates import LINK_LATENCY_S
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan, InstanceEntry
from blockc.simulate.moves import Outage
from blockc.spec.device_kinds import DEVICE_KINDS
from blockc_runtime.limits import EngineLimits, engine_limits, turn_limits
from blockc_runtime.router import Link, Network, planned_route

_NO_SLOTS: Final[Mapping[int, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class StageHop:
    """From a stage to the next: the link, and a token's hidden states on it."""

    link: Link
    token_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetInstance:
    """Devices that batch together. ``name``: their addresses.

    ``stages``: of a pipeline, the prices of each; ``pricer``: of all stages one after the other, as one device.
    """

    name: str
    width: int
    limits: EngineLimits
    rates: DeviceRates
    pricer: StepPricer
    stages: tuple[StepPricer, ...] = ()
    hops: tuple[StageHop, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetApp:
    """An app: its tenant, which instances run its chain, and the part of its requests that each is meant for.

    ``readers``: others, which read its prompts; empty: who answers has read. ``served``: the part of its load that the
    plan has a place for.
    """

    address: str
    tenant: str
    weight: float
    chain: int
    isolation_group: str
    instances: tuple[int, ...]
    shares: tuple[float, ...]
    priority: int = 0
    served: float = 1.0
    readers: tuple[int, ...] = ()
    reader_shares: tuple[float, ...] = ()

    def on(self, instances: tuple[int, ...], shares: tuple[float, ...]) -> FleetApp:
        """The same on other instances, which read and answer alike."""
        return replace(self, instances=instances, shares=shares, readers=(), reader_shares=())

    @property
    def all(self) -> tuple[int, ...]:
        """Every instance that runs its chain."""
        return (*self.instances, *self.readers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """``label``: ``ours``, or the baseline's name. ``devices``: how many it uses. ``weights_bytes``: on all of them.

    ``network``: how instances hand KV to each other. ``caches`` False: no request finds in the KV cache what another
    has computed. ``is_blind``: whoever chooses an instance knows nothing of what is in their caches. ``moves``:
    requests under way go to another instance where that pays. ``outages``: instances that go out of service.
    """

    label: str
    apps: tuple[FleetApp, ...]
    instances: tuple[FleetInstance, ...]
    devices: int
    weights_bytes: int
    network: Network
    caches: bool = True
    is_blind: bool = False
    moves: bool = False
    outages: tuple[Outage, ...] = ()


def fleet_of(plan: ExecutionPlan, rates: Mapping[str, DeviceRates]) -> Fleet:
    """The fleet that a plan describes. ``rates``: by kind of device, as `rates_of` finds them."""
    work, limits = plan_work(plan), engine_limits(plan)
    return Fleet(
        label="ours",
        apps=apps_of(plan),
        instances=tuple(
            FleetInstance(
                name="+".join(plan.devices[device].address for device in instance.devices),
                width=instance.width,
                limits=replace(
                    instance_limits(
                        plan, limits, instance.kv_pages, max_rows=instance.max_rows, side_slots=instance.side_slots
                    ),
                    turns=turn_limits(instance),
                    room_bytes=instance.room_bytes,
                ),
                rates=own,
                pricer=StepPricer(work, own),
                stages=stage_pricers(plan, instance, own),
                hops=stage_hops(plan, instance),
            )
            for instance in plan.instances
            for own in (instance_rates(plan, instance.devices[: instance.width], rates),)
        ),
        devices=len({device for instance in plan.instances for device in instance.devices}),
        weights_bytes=sum(entry.weights_bytes + entry.blocks_bytes + entry.sides_bytes for entry in plan.memory),
        network=network_of(plan, [instance.devices for instance in plan.instances]),
    )  # fmt: skip


def stage_pricers(plan: ExecutionPlan, instance: InstanceEntry, rates: DeviceRates) -> tuple[StepPricer, ...]:
    """Of each stage the price of its part of a step; empty without stages."""
    if not instance.stages:
        return ()
    return tuple(
        StepPricer(work, rates) for work in stage_works(plan, [(own.first, own.count) for own in instance.stages])
    )


def stage_hops(plan: ExecutionPlan, instance: InstanceEntry) -> tuple[StageHop, ...]:
    """Links between stages, which the plan names or devices have. Of devices without any a hop takes no time."""
    return tuple(
        StageHop(
            link=Link(bytes_per_s=math.inf, latency_s=0.0)
            if link is None
            else Link(bytes_per_s=link.bytes_per_s, latency_s=link.latency_s),
            token_bytes=nbytes,
        )
        for link, nbytes in stage_links(plan, instance)
    )


def apps_of(plan: ExecutionPlan) -> tuple[FleetApp, ...]:
    """The apps of a plan, on its own instances."""
    routes = {route.chain: planned_route(route) for route in plan.routes}
    return tuple(
        FleetApp(
            address=app.address, tenant=app.tenant, weight=app.weight, chain=app.chain,
            isolation_group=app.isolation_group, instances=route.instances, shares=route.shares,
            priority=app.priority, served=app.served, readers=route.readers, reader_shares=route.reader_shares,
        )
        for app in plan.apps
        for route in [routes[app.chain]]
    )  # fmt: skip


def network_of(plan: ExecutionPlan, instances: Sequence[Sequence[int]]) -> Network:
    """How KV gets from one instance to another: by the plan's links, else within a node by what its devices have.

    Of several links the slowest counts. Between nodes of which no link is known nothing travels.
    """
    node_of = [device.node for device in plan.devices]
    found: dict[bool, list[Link]] = {True: [], False: []}
    for link in plan.links:
        found[node_of[link.source] == node_of[link.target]].append(
            Link(bytes_per_s=link.bytes_per_s, latency_s=link.latency_s)
        )
    if not found[True]:
        kinds = {plan.devices[devices[0]].kind for devices in instances}
        rates = [DEVICE_KINDS[kind].link_bytes_per_s for kind in sorted(kinds) if kind in DEVICE_KINDS]
        found[True] = [Link(bytes_per_s=rate, latency_s=LINK_LATENCY_S) for rate in rates if rate is not None]
    within, between = (min(found[same], key=lambda link: link.bytes_per_s, default=None) for same in (True, False))
    return Network(nodes=tuple(node_of[devices[0]] for devices in instances), within=within, between=between)


def instance_limits(
    plan: ExecutionPlan,
    limits: EngineLimits,
    pages: Mapping[int, int],
    *,
    max_rows: int,
    side_slots: Mapping[int, int] = _NO_SLOTS,
) -> EngineLimits:
    """The plan's ``limits`` with the pages of one instance. Fine-tunes of banks without ``side_slots`` always stay.

    So are the weights of all segments.
    """
    return replace(
        limits,
        groups=tuple(replace(group, pages=pages.get(index, 0)) for index, group in enumerate(limits.groups)),
        chains=tuple(
            replace(chain, bank=entry.bank if entry.bank in side_slots else None)
            for chain, entry in zip(limits.chains, plan.chains, strict=True)
        ),
        max_rows=max_rows,
        bank_slots=dict(side_slots),
        turns={},
        room_bytes=0,
    )


def instance_rates(plan: ExecutionPlan, devices: tuple[int, ...], rates: Mapping[str, DeviceRates]) -> DeviceRates:
    """Rates of a cell, by the kind of its devices and their link."""
    kind = plan.devices[devices[0]].kind
    return cell_rates(rates[kind], width=len(devices), link_bytes_per_s=node_link(plan, kind))


def rates_of(
    plan: ExecutionPlan, *, diags: Diagnostics, cost_scale: float = 1.0, profile: Profile | None = None
) -> dict[str, DeviceRates]:
    """Rates of every kind of device that a plan uses. Reports kinds of which nothing is known (BC504).

    Also reports ways that pass several instances (BC508): no fleet has such.
    ``cost_scale``: everything is to take so many times as long. ``profile``: measured rates of one kind; reports one of
    another kind (BC505), and one that was measured with other structures (BC506).
    """
    _check_ways(plan, diags)
    found: dict[str, DeviceRates] = {}
    used = {device for instance in plan.instances for device in instance.devices}
    for name in sorted({plan.devices[device].kind for device in used}):
        kind = DEVICE_KINDS.get(name)
        rates = catalogue_rates(kind) if kind is not None else None
        if profile is not None and profile.device == name:
            rates = profile.device_rates
        if rates is None:
            known = ", ".join(f"`{item.name}`" for item in DEVICE_KINDS.values() if item.bytes_per_s is not None)
            diags.report(
                "BC504",
                f"nothing is known of how fast a `{name}` is",
                notes=(f"rates are known of {known}",),
                help="name the device's kind in the spec and compile it again; its `memory` may stay as it is",
            )
        else:
            found[name] = slower(rates, cost_scale)
    if profile is not None:
        _check_profile(plan, profile, found, diags)
    return found


def _check_ways(plan: ExecutionPlan, diags: Diagnostics) -> None:
    for route in plan.routes:
        for way in route.alternatives:
            if len(way) > 1:
                name = next(app.address for app in plan.apps if app.chain == route.chain)
                diags.report(
                    "BC508",
                    f"a way of {name} passes {len(way)} instances in each step, which is not simulated",
                    help="compile the spec again: a model on several devices is one instance with stages",
                )
                return


def _check_profile(plan: ExecutionPlan, profile: Profile, found: Mapping[str, DeviceRates], diags: Diagnostics) -> None:
    if profile.device not in found:
        kinds = ", ".join(f"`{name}`" for name in found) or "none that is known"
        diags.report(
            "BC505",
            f"the profile is of a `{profile.device}`, the plan's devices are {kinds}",
            help="measure one of those: `blockc profile`",
        )
    missing = [digest for digest in plan.structures if digest not in profile.structures]
    if missing:
        diags.report(
            "BC506",
            f"{len(missing)} of {len(plan.structures)} structures of the plan were not measured",
            help="measure the plan itself: `blockc profile PLAN`",
        )
