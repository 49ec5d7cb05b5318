"""The tables that say where: devices, the links between them, and the rules of the spec.

In: the deployment. Out: entries of a plan.
"""

from __future__ import annotations

import itertools

from blockc.cost.rates import LINK_LATENCY_S
from blockc.place import place_rules
from blockc.plan import DeviceEntry, LinkEntry, RuleEntry
from blockc.spec.deployment import Cluster, Deployment
from blockc.unify import UnifiedGraph


def device_entries(cluster: Cluster) -> tuple[DeviceEntry, ...]:
    """In the order of the spec."""
    return tuple(
        DeviceEntry(
            address=device.address,
            node=device.address.split("/")[0],
            kind=device.kind,
            memory_bytes=device.memory_bytes,
            reserve_bytes=device.reserve_bytes,
        )
        for device in cluster.devices
    )


def link_entries(cluster: Cluster) -> tuple[LinkEntry, ...]:
    """One within a node and one between nodes, where the spec says what they carry and there are such devices."""
    nodes = [device.address.split("/")[0] for device in cluster.devices]
    found = []
    for rate, latency_s, within in (
        (cluster.link_bytes_per_s, LINK_LATENCY_S, True),
        (cluster.node_bytes_per_s, float(cluster.node_latency_s), False),
    ):
        pairs = ((a, b) for a, b in itertools.combinations(range(len(nodes)), 2) if (nodes[a] == nodes[b]) is within)
        pair = next(pairs, None)
        if rate is not None and pair is not None:
            found.append(LinkEntry(source=pair[0], target=pair[1], bytes_per_s=max(1, int(rate)), latency_s=latency_s))
    return tuple(found)


def rule_entries(deployment: Deployment, graph: UnifiedGraph) -> tuple[RuleEntry, ...]:
    """Those that placement kept to."""
    return tuple(
        RuleEntry(
            kind=rule.kind,
            text=rule.text,
            chains=rule.chains,
            devices=tuple(sorted(rule.devices)),
            count=rule.count,
        )
        for rule in place_rules(deployment, graph)
    )
