"""Instances that read prompts for others, where by a simulation more requests are in time so (DistServe's roles).

In: a spec that lets them (`solver { roles = auto }`) and its plan. Out: the plan, with readers on its routes or not,
and what the simulation of both said. Long prompts make steps long in which others wait for a token; apart, nobody's
answer waits for a prompt, KV travels instead, and fewer instances are there for each. Which is better depends on
lengths, targets and links, so it is tried, as DistServe does (arXiv 2401.09670, section 4): for models that run on the
same several cells, every number of readers among them, under the spec's own traffic. Invariant: placement, memory and
the parts of each instance stay as they are, and what is not at least `LEAST_GAIN` better is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from blockc.cost import DeviceRates
from blockc.cost.profile import Profile
from blockc.diag import Diagnostics
from blockc.plan import AttainedEntry, ExecutionPlan, RolesEntry
from blockc.simulate.fleet import apps_of, fleet_of, network_of, rates_of
from blockc.simulate.judged import own_load
from blockc.simulate.recorded import has_load
from blockc.simulate.report import Report, Targets, report, targets_of
from blockc.simulate.simulate import simulate
from blockc.simulate.workload import Workload
from blockc.spec.deployment import Deployment

# Of all requests: what one seed's draw moves anyway is no reason.
LEAST_GAIN: Final = 0.01
_SECONDS: Final = 300.0
_REQUESTS: Final = 5_000


def with_roles(
    deployment: Deployment, plan: ExecutionPlan, *, profile: Profile | None = None, diags: Diagnostics
) -> ExecutionPlan:
    """The plan, as it is or with readers. BC509 where nothing could be tried; nothing if the spec does not ask."""
    if deployment.policy.roles != "auto":
        return plan
    groups = tuple(_groups(plan))
    unknown = Diagnostics()
    rates = rates_of(plan, profile=profile, diags=unknown)
    targets = targets_of(deployment)
    why = None
    if not has_load(deployment):
        why = "the spec says nothing of its traffic"
    elif not any(item.is_any for item in targets.values()):
        why = "no app has a target (`slo { ttft_p95 = 1s }`) that they could help to meet"
    elif unknown.has_errors:
        why = next(iter(unknown)).message
    elif not groups:
        why = "no model runs on several cells that a link joins, with all that are there"
    if why is not None:
        diags.report("BC509", f"no instance reads prompts for others: {why}", at=deployment.policy.roles_span)
        return plan
    return _best(
        plan, groups, rates, own_load(deployment, plan, seconds=_SECONDS, requests=_REQUESTS, diags=diags), targets
    )


def _groups(plan: ExecutionPlan) -> Iterator[tuple[int, ...]]:
    """Instances that run the same models, and on which alone those run; one of each node first, then the next of each.

    So readers and those who answer are beside each other on as many nodes as can be.
    """
    by_instances: dict[tuple[int, ...], set[int]] = {}
    for route in plan.routes:
        own = tuple(sorted(way[0] for way in route.alternatives if len(way) == 1))
        by_instances.setdefault(own, set()).add(route.chain)
    network = network_of(plan, [item.devices for item in plan.instances])
    for instances, chains in sorted(by_instances.items()):
        entries = [plan.instances[item] for item in instances]
        if len(instances) < 2 or any(set(item.chains) != chains or item.stages for item in entries):
            continue
        if any(network.link(instances[0], item) is None for item in instances[1:]):
            continue
        rank: dict[int, tuple[int, int]] = {}
        nodes: dict[str, int] = {}
        for item in instances:
            node = network.nodes[item]
            rank[item] = (nodes.get(node, 0), item)
            nodes[node] = nodes.get(node, 0) + 1
        yield tuple(sorted(instances, key=rank.__getitem__))


def _best(
    plan: ExecutionPlan,
    groups: Sequence[tuple[int, ...]],
    rates: Mapping[str, DeviceRates],
    load: Workload,
    targets: Mapping[str, Targets],
) -> ExecutionPlan:
    fleet = fleet_of(plan, rates)

    def run(tried: ExecutionPlan) -> AttainedEntry:
        return _attained(report(simulate(replace(fleet, apps=apps_of(tried)), load), targets))

    shared = run(plan)
    best, found, tries = plan, shared, list[AttainedEntry]()
    for group in groups:
        tried = [with_readers(best, group[:count]) for count in range(1, len(group))]
        results = [run(item) for item in tried]
        best, found = min([(best, found), *zip(tried, results, strict=True)], key=lambda item: _order(item[1]))
        tries += results
    if found.in_time < shared.in_time + LEAST_GAIN:
        best, found = plan, min(tries, key=_order)
    readers = tuple(sorted({item for route in best.routes for item in route.readers}))
    said = RolesEntry(
        readers=readers, requests=len(load.arrivals), seconds=round(load.horizon_s, 3), apart=found, shared=shared
    )
    requires = {*best.requires, *(("roles:readers",) if readers else ())}
    return best.model_copy(update={"roles": said, "requires": tuple(sorted(requires))})


def with_readers(plan: ExecutionPlan, readers: tuple[int, ...]) -> ExecutionPlan:
    """The plan, with those readers on all routes that have them and others."""
    routes = tuple(
        route.model_copy(update={"readers": tuple(sorted(readers))})
        if {way[0] for way in route.alternatives} > set(readers)
        else route
        for route in plan.routes
    )
    return plan.model_copy(update={"routes": routes})


def _order(item: AttainedEntry) -> tuple[float, float]:
    return -item.in_time, item.e2e_p95_s


def _attained(found: Report) -> AttainedEntry:
    total = found.total
    p95 = [0.0 if item is None else round(item.p95_s, 6) for item in (total.ttft, total.tpot, total.e2e)]
    return AttainedEntry(
        in_time=round(total.attainment or 0.0, 6), ttft_p95_s=p95[0], tpot_p95_s=p95[1], e2e_p95_s=p95[2]
    )
