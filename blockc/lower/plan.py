"""Placement + graph -> ``ExecutionPlan``: everything by digest or index, canonical, nothing recomputed later.

In: the unified graph, the placement, the deployment. Out: the plan, and in the zoo one manifest of sides for each
chain that has any; none for a plan that is only simulated. Invariant: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from blockc import __version__
from blockc.cost import DeviceRates, with_prices
from blockc.ir import format_structure
from blockc.lower.app_entries import app_entries, model_entries
from blockc.lower.graph_entries import block_entry, chain_entry, kv_group_entries, path_entry, segment_entries
from blockc.lower.place_entries import device_entries, link_entries, rule_entries
from blockc.merge import Merged
from blockc.place import Placement, chain_banks, tenant_entries
from blockc.plan import FORMAT_VERSION, BatchingEntry, ChainEntry, ExecutionPlan, KvGroupEntry
from blockc.quantize import Quantization
from blockc.share import Evidence
from blockc.spec.deployment import Deployment, Overlap
from blockc.target import Target
from blockc.tune import ModelFiles
from blockc.unify import UnifiedGraph
from blockc.zoo import Zoo


def lower(
    deployment: Deployment,
    files: Mapping[str, ModelFiles],
    graph: UnifiedGraph,
    placement: Placement,
    *,
    target: Target,
    rates_of: Callable[[str, int], DeviceRates | None],
    parameters: Mapping[str, int],
    zoo: Zoo | None,
    merged: Merged | None = None,
    evidence: Mapping[str, Evidence] = MappingProxyType({}),
    quantizations: Mapping[str, Quantization] = MappingProxyType({}),
) -> ExecutionPlan:
    """Write the plan. ``parameters``: of each full model. ``zoo`` None: for the target ``sim``.

    ``rates_of``: of so many devices of a kind together, by which placement counted; None: nothing is known of it.
    """
    structures = {block.structure_digest: format_structure(block.structure) for block in graph.blocks.values()}
    groups = kv_group_entries(deployment, graph)
    banks = chain_banks(deployment, graph)
    chains = tuple(chain_entry(graph, index, banks[index], zoo) for index in range(len(graph.chains)))
    plan = ExecutionPlan(
        compiler=f"blockc {__version__}",
        spec_digest=deployment.digest,
        target=target,
        requires=_requires(deployment, graph, chains, groups, placement, target),
        structures={digest: structures[digest] for digest in sorted(structures)},
        blocks={digest: block_entry(block) for digest, block in graph.blocks.items()},
        paths={digest: path_entry(path) for digest, path in graph.paths.items()},
        chains=chains,
        segments=segment_entries(graph),
        crossing=graph.crossing,
        kv_groups=groups,
        nodes=tuple(sorted({device.address.split("/")[0] for device in deployment.cluster.devices})),
        devices=device_entries(deployment.cluster),
        links=link_entries(deployment.cluster),
        instances=placement.instances,
        edges=(),
        routes=placement.routes,
        apps=app_entries(deployment, graph, placement),
        models=model_entries(
            deployment,
            files,
            graph,
            parameters=parameters,
            zoo=zoo,
            merged=merged or Merged(chains={}, merges={}),
            evidence=evidence,
            quantizations=quantizations,
        ),
        memory=placement.memory,
        baselines=placement.baselines,
        price=placement.price,
        rules=rule_entries(deployment, graph),
        tenants=tenant_entries(deployment, graph),
        solver=placement.solver,
        batching=BatchingEntry(
            max_batched_tokens=deployment.policy.max_batched_tokens,
            max_rows=deployment.policy.max_rows,
            prefill_parts=deployment.policy.prefill_parts,
            overlaps=_overlaps(deployment.policy.overlap, target),
        ),
    )
    return with_prices(plan, rates_of)


def _overlaps(wanted: Overlap, target: Target) -> bool:
    """On a CPU the host's work and the step's want the same cores."""
    return wanted == "on" or (wanted == "auto" and target == "cuda")


def _requires(
    deployment: Deployment,
    graph: UnifiedGraph,
    chains: tuple[ChainEntry, ...],
    groups: tuple[KvGroupEntry, ...],
    placement: Placement,
    target: Target,
) -> tuple[str, ...]:
    """What a runtime must have to serve the plan, each by name, so that it can refuse by name."""
    needs = {f"format:{FORMAT_VERSION}"}
    if target == "sim":
        needs |= {"weights:assumed", *(f"device:{device.kind}" for device in deployment.cluster.devices)}
    else:
        needs.add(f"device:{target}")
    needs |= {f"dtype:{path.dtype}" for path in graph.paths.values()}
    needs |= {f"kv:{group.dtype}" for group in groups}
    needs |= {f"op:{op.target}" for block in graph.blocks.values() for op in block.structure.ops}
    needs.add(f"devices:{max(len(instance.devices) for instance in placement.instances)}")
    if any(chain.embedding is not None for chain in chains):
        needs.add("output:vector")
    if any(chain.labels for chain in chains):
        needs.add("output:scores")
    if any(chain.each_token for chain in chains):
        needs.add("output:token_scores")
    needs |= {f"turns:{turn.kept}" for instance in placement.instances for turn in instance.turns}
    needs |= {f"side:{kind}" for chain in chains for kind in chain.side_kinds}
    if any(chain.virtual_tokens for chain in chains):
        needs.add("input:virtual")
    return tuple(sorted(needs))
