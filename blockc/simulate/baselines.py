"""The same models, apps and devices, arranged as others would: what sharing blocks is worth.

In: a plan. Out: fleets to run the same load on, with the same scheduler, prices and layout.

- ``pm``, per model: each chain is a model of its own, fine-tunes merged; nothing is shared, in memory or in a launch.
- ``ps``, parameter sharing as LoRA servers do it: chains on one path (adapters of one base) share its weights and its
  launches; every full fine-tune has weights of its own.
- ``no-sharing``: as ``pm``, with fine-tunes beside the weights.
- ``no-batching``: weights lie once as in the plan, and each chain's rows run in launches of their own.
- ``no-cache``: as the plan, and nothing is found in the KV cache.
- ``blind``: as the plan, and whoever chooses between instances knows nothing of what is in their caches.
- ``hand-over``: as the plan, and requests under way move to another instance where that pays.
- ``no-roles``: as the plan, and every instance reads the prompts that it answers.

Baselines get the devices that the plan uses, and as many more of the same kind as they need to fit at all. They are
packed by bytes, as the plan is: a chain goes where it adds least, and among equals where least lies. On equal devices,
with replicas: `equal.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from blockc.cost import DeviceRates, PlanWork, StepPricer, cell_rates, node_link, plan_work
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan
from blockc.simulate.cells import Cell, device_bytes, even_pages, fits, least_width
from blockc.simulate.fleet import Fleet, FleetInstance, fleet_of, instance_limits
from blockc.simulate.stored import Way, separate, ways
from blockc_runtime.limits import engine_limits
from blockc_runtime.router import Network


def per_model(plan: ExecutionPlan, rates: Mapping[str, DeviceRates], *, diags: Diagnostics) -> Fleet | None:
    """Every chain by itself. Reports what fits nowhere (BC401), and is then None."""
    return _packed(plan, ways(plan)["pm"], rates, diags)


def parameter_sharing(plan: ExecutionPlan, rates: Mapping[str, DeviceRates], *, diags: Diagnostics) -> Fleet | None:
    """Adapters share their base, and nothing else is shared. Reports what fits nowhere (BC401), and is then None."""
    return _packed(plan, ways(plan)["ps"], rates, diags)


def without_sharing(plan: ExecutionPlan, rates: Mapping[str, DeviceRates], *, diags: Diagnostics) -> Fleet | None:
    """As `per_model`, with fine-tunes beside the weights. Reports what fits nowhere (BC401), and is then None."""
    return _packed(plan, ways(plan)["no-sharing"], rates, diags)


def without_batching(plan: ExecutionPlan, fleet: Fleet) -> Fleet:
    """The fleet's memory and places, with launches for each chain."""
    work = separate(plan_work(plan), lambda chain: chain, merged=False)
    return replace(fleet, label="no-batching", instances=tuple(
        replace(item, pricer=StepPricer(work, item.rates)) for item in fleet.instances
    ))  # fmt: skip


def without_cache(plan: ExecutionPlan, fleet: Fleet) -> Fleet:
    """The fleet, with caches in which no request finds another's tokens."""
    del plan
    return replace(fleet, label="no-cache", caches=False)


def without_sight(plan: ExecutionPlan, fleet: Fleet) -> Fleet:
    """The fleet, with a router that knows nothing of caches."""
    del plan
    return replace(fleet, label="blind", is_blind=True)


def with_moves(plan: ExecutionPlan, fleet: Fleet) -> Fleet:
    """The fleet, with a router that moves requests under way where that pays."""
    del plan
    return replace(fleet, label="hand-over", moves=True)


def without_roles(plan: ExecutionPlan, fleet: Fleet) -> Fleet:
    """The fleet, with nobody who reads prompts for others."""
    del plan
    apps = tuple(
        app.on(*zip(*sorted(zip(app.all, (*app.shares, *app.reader_shares), strict=True)), strict=True))
        for app in fleet.apps
    )
    return replace(fleet, label="no-roles", apps=apps)


# Arrangements of their own, and what changes one thing of a fleet.
PACKED: Final[dict[str, Callable[..., Fleet | None]]] = {
    "pm": per_model,
    "ps": parameter_sharing,
    "no-sharing": without_sharing,
}
LESS: Final[dict[str, Callable[[ExecutionPlan, Fleet], Fleet]]] = {
    "no-batching": without_batching,
    "no-cache": without_cache,
    "blind": without_sight,
    "hand-over": with_moves,
    "no-roles": without_roles,
}
BASELINES: Final = (*PACKED, *LESS)


def baseline(name: str, plan: ExecutionPlan, rates: Mapping[str, DeviceRates], *, diags: Diagnostics) -> Fleet | None:
    """One of `BASELINES`. Reports what fits nowhere (BC401), and is then None."""
    if name in LESS:
        return LESS[name](plan, fleet_of(plan, rates))
    return PACKED[name](plan, rates, diags=diags)


def _packed(plan: ExecutionPlan, way: Way, rates: Mapping[str, DeviceRates], diags: Diagnostics) -> Fleet | None:
    """Chains on cells of the plan's first device's kind, the largest first."""
    label, models, work = way.label, way.stored, way.work
    device = plan.devices[plan.instances[0].devices[0]]
    offered_bytes = device_bytes(plan)
    used = len({item for instance in plan.instances for item in instance.devices})
    cells: list[Cell] = []
    free = used
    place: dict[int, int] = {}
    for chain in sorted(range(len(models)), key=lambda item: (-sum(models[item].units.values()), item)):
        model = models[chain]
        width = least_width(plan, chain, model)
        if width is None:
            name = plan.apps[[app.chain for app in plan.apps].index(chain)].address
            diags.report(
                "BC401",
                f"the baseline `{label}` cannot hold {name} on 8 devices of the kind `{device.kind}`",
                help=f"leave `{label}` out",
            )
            return None
        while free >= width and not any(cell.width == width and not cell.chains for cell in cells):
            cells.append(Cell(width=width, offered_bytes=offered_bytes * width))
            free -= width
        fitting = [
            (cell.added_bytes(model), cell.weights_bytes, index)
            for index, cell in enumerate(cells)
            if cell.width >= width and fits(plan, cell, chain, model)
        ]
        if fitting:
            index = min(fitting)[2]
        else:
            index = len(cells)
            cells.append(Cell(width=width, offered_bytes=offered_bytes * width))
        cells[index].take(chain, model)
        place[chain] = index
    return _fleet(label, plan, cells, place, work, rates, device.kind)


def _fleet(
    label: str,
    plan: ExecutionPlan,
    cells: Sequence[Cell],
    place: Mapping[int, int],
    work: PlanWork,
    rates: Mapping[str, DeviceRates],
    kind: str,
) -> Fleet:
    used = [index for index, cell in enumerate(cells) if cell.chains]
    number = {index: position for position, index in enumerate(used)}
    limits = engine_limits(plan)
    instances = []
    for index in used:
        cell = cells[index]
        own = cell_rates(rates[kind], width=cell.width, link_bytes_per_s=node_link(plan, kind))
        instances.append(
            FleetInstance(
                name=f"{label}{number[index]}",
                width=cell.width,
                limits=instance_limits(plan, limits, even_pages(plan, cell), max_rows=plan.batching.max_rows),
                rates=own,
                pricer=StepPricer(work, own),
            )
        )
    ours = fleet_of(plan, rates)
    return Fleet(
        label=label,
        apps=tuple(app.on((number[place[app.chain]],), (1.0,)) for app in ours.apps),
        instances=tuple(instances),
        devices=sum(item.width for item in instances),
        weights_bytes=sum(cells[index].weights_bytes for index in used),
        network=Network(nodes=tuple(item.name for item in instances)),
    )
