"""From stage to stage of a pipeline: the link that hidden states take, and their bytes.

In: a plan and one of its instances. Out: for each hop a link and the bytes of one token. Of several links of one sort
the slowest counts; within a node, where the plan names none, devices have that of their kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from blockc.cost.rates import LINK_LATENCY_S, node_link
from blockc.cost.work import state_bytes
from blockc.ir import parse_structure
from blockc.plan import ExecutionPlan, InstanceEntry, StageEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class HopLink:
    """One message after the other."""

    bytes_per_s: float
    latency_s: float

    def seconds(self, nbytes: float) -> float:
        """Of one message."""
        return self.latency_s + nbytes / self.bytes_per_s


def stage_links(plan: ExecutionPlan, instance: InstanceEntry) -> tuple[tuple[HopLink | None, int], ...]:
    """None: nothing is known of the way. Empty without stages."""
    return tuple(
        (_link(plan, before.devices[0], after.devices[0]), hop_bytes(plan, instance, after))
        for before, after in pairwise(instance.stages)
    )


def _link(plan: ExecutionPlan, source: int, target: int) -> HopLink | None:
    node = [device.node for device in plan.devices]
    if node[source] == node[target]:
        rate = node_link(plan, plan.devices[source].kind)
        return None if rate is None else HopLink(bytes_per_s=rate, latency_s=LINK_LATENCY_S)
    known = [link for link in plan.links if node[link.source] != node[link.target]]
    slowest = min(known, key=lambda link: link.bytes_per_s, default=None)
    return None if slowest is None else HopLink(bytes_per_s=slowest.bytes_per_s, latency_s=slowest.latency_s)


def hop_bytes(plan: ExecutionPlan, instance: InstanceEntry, stage: StageEntry) -> int:
    """Of the hidden states of one token on their way to a stage, the most of any chain."""
    paths = {plan.chains[chain].path for chain in instance.chains}
    texts = {plan.blocks[plan.paths[path].blocks[stage.first]].structure for path in paths}
    return max(state_bytes(parse_structure(plan.structures[digest])) for digest in sorted(texts))
