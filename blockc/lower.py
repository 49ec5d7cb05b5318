"""Placement + graph -> ``ExecutionPlan``: everything by digest or index, canonical, nothing recomputed later.

In: the unified graph, the placement, the deployment. Out: the plan, and in the zoo one manifest of sides for each
chain that has any; none for a plan that is only simulated. Invariant: the same input gives the same bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from blockc import __version__
from blockc.cost.rates import LINK_LATENCY_S
from blockc.evaluate import Agreement, Probe
from blockc.graph import Block, Chain, Embedding, ModelPath
from blockc.ir import canonical_json, format_structure, json_digest
from blockc.ir.infer import value_types
from blockc.merge import Merge
from blockc.place import Placement, chain_banks, least_tpot_s, place_rules, tenant_entries
from blockc.plan import (
    FORMAT_VERSION,
    AgreementEntry,
    AppEntry,
    BatchingEntry,
    BlockEntry,
    ChainEntry,
    ChainKvEntry,
    CutEntry,
    DeviceEntry,
    EmbeddingEntry,
    EvidenceManifest,
    ExecutionPlan,
    KvGroupEntry,
    KvLayerEntry,
    LinkEntry,
    MergeEntry,
    ModelEntry,
    PathEntry,
    QuantizationEntry,
    RuleEntry,
    SegmentEntry,
    SharingEntry,
    SideEntry,
    SideManifest,
    TensorEvidenceEntry,
)
from blockc.quantize import Quantization
from blockc.share import Evidence, TensorEvidence
from blockc.spec.deployment import (
    App,
    Assumption,
    Base,
    Cluster,
    Deployment,
    FineTune,
    HubSource,
    LocalSource,
    Overlap,
    Source,
    Tenant,
)
from blockc.target import Target
from blockc.tune import ModelFiles
from blockc.tune.source import commit_of
from blockc.unify import UnifiedGraph
from blockc.zoo import Zoo


def lower(
    deployment: Deployment,
    files: Mapping[str, ModelFiles],
    graph: UnifiedGraph,
    placement: Placement,
    *,
    target: Target,
    parameters: Mapping[str, int],
    zoo: Zoo | None,
    merges: Mapping[str, Merge] = MappingProxyType({}),
    evidence: Mapping[str, Evidence] = MappingProxyType({}),
    quantizations: Mapping[str, Quantization] = MappingProxyType({}),
) -> ExecutionPlan:
    """Write the plan. ``parameters``: of each full model. ``zoo`` None: for the target ``sim``."""
    structures = {block.structure_digest: format_structure(block.structure) for block in graph.blocks.values()}
    groups = kv_group_entries(deployment, graph)
    banks = chain_banks(deployment, graph)
    chains = tuple(_chain(graph, index, banks[index], zoo) for index in range(len(graph.chains)))
    return ExecutionPlan(
        compiler=f"blockc {__version__}",
        spec_digest=deployment.digest,
        target=target,
        requires=_requires(deployment, graph, chains, groups, placement, target),
        structures={digest: structures[digest] for digest in sorted(structures)},
        blocks={digest: _block(block) for digest, block in graph.blocks.items()},
        paths={digest: _path(path) for digest, path in graph.paths.items()},
        chains=chains,
        segments=_segments(graph),
        crossing=graph.crossing,
        kv_groups=groups,
        nodes=tuple(sorted({device.address.split("/")[0] for device in deployment.cluster.devices})),
        devices=tuple(
            DeviceEntry(
                address=device.address,
                node=device.address.split("/")[0],
                kind=device.kind,
                memory_bytes=device.memory_bytes,
                reserve_bytes=device.reserve_bytes,
            )
            for device in deployment.cluster.devices
        ),
        links=_links(deployment.cluster),
        instances=placement.instances,
        edges=(),
        routes=placement.routes,
        apps=tuple(
            _app(app, tenant, graph, placement) for tenant in deployment.tenants.values() for app in tenant.apps
        ),
        models={
            name: _model(item, files[name], graph, parameters.get(name)).model_copy(
                update={
                    "merged": _merged(merges.get(name)),
                    "sharing": _sharing(evidence.get(name), zoo),
                    "quantization": _quantization(quantizations.get(name), zoo),
                }
            )
            for name, item in _items(deployment)
        },
        memory=placement.memory,
        baselines=placement.baselines,
        price=placement.price,
        rules=tuple(
            RuleEntry(
                kind=rule.kind,
                text=rule.text,
                chains=rule.chains,
                devices=tuple(sorted(rule.devices)),
                count=rule.count,
            )
            for rule in place_rules(deployment, graph)
        ),
        tenants=tenant_entries(deployment, graph),
        solver=placement.solver,
        batching=BatchingEntry(
            max_batched_tokens=deployment.policy.max_batched_tokens,
            max_rows=deployment.policy.max_rows,
            prefill_parts=deployment.policy.prefill_parts,
            overlaps=_overlaps(deployment.policy.overlap, target),
        ),
    )


def _links(cluster: Cluster) -> tuple[LinkEntry, ...]:
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


def _overlaps(wanted: Overlap, target: Target) -> bool:
    """On a CPU the host's work and the step's want the same cores."""
    return wanted == "on" or (wanted == "auto" and target == "cuda")


def kv_group_entries(deployment: Deployment, graph: UnifiedGraph) -> tuple[KvGroupEntry, ...]:
    """The graph's KV groups with the page size of the policy."""
    return tuple(
        KvGroupEntry(
            first_layer=group.first,
            layers=group.count,
            kv_heads=group.shape.kv_heads,
            head_dim=group.shape.head_dim,
            window=group.shape.window,
            dtype=group.shape.dtype,
            page_tokens=deployment.policy.kv_page_tokens,
        )
        for group in graph.groups
    )


def isolation_group(app: App, tenant: Tenant) -> str:
    """Who may share cached state: the tenant; with strict isolation the app alone."""
    names = [tenant.name, app.name] if tenant.isolation == "strict" else [tenant.name]
    return json_digest("isolation v1", names)


def side_manifest(chain: Chain) -> SideManifest:
    """The chain's sides as the runtime reads them."""
    return SideManifest(sides=tuple(SideEntry.of(side) for side in chain.sides))


def side_kinds(chain: Chain) -> tuple[str, ...]:
    """What the chain's sides are, such as ``low_rank@linear``."""
    kinds: set[str] = set()
    for side in chain.sides:
        place = chain.path.blocks[side.site.occurrence].places[side.site.name]
        kinds |= {f"{term.codec}@{place.kind}" for term in side.terms}
    return tuple(sorted(kinds))


def _chain(graph: UnifiedGraph, index: int, bank: int | None, zoo: Zoo | None) -> ChainEntry:
    chain = graph.chains[index]
    manifest = None
    if chain.sides and zoo is None:
        manifest = json_digest("assumed sides v1", chain.digest)
    elif chain.sides and zoo is not None:
        manifest = zoo.put_blob(canonical_json(side_manifest(chain).model_dump(mode="json")).encode())
    return ChainEntry(
        digest=chain.digest,
        path=chain.path.digest,
        sides=manifest,
        side_kinds=side_kinds(chain),
        side_rank=max((side.rank for side in chain.sides), default=0),
        bank=bank,
        segments=graph.segments_of[index],
        kv=tuple(
            ChainKvEntry(
                group=group,
                domain=graph.domains[index][graph.groups[group].first + graph.groups[group].count - 1],
            )
            for group in graph.groups_of[index]
        ),
        assets=dict(sorted(chain.assets.items())),
        vocab_size=chain.path.vocab_size,
        max_model_len=chain.path.max_model_len,
        stop_token_ids=chain.stop_token_ids,
        virtual_tokens=chain.virtual_tokens,
        labels=chain.labels,
        each_token=chain.each_token,
        embedding=None if chain.embedding is None else _embedding(chain.path, chain.embedding),
    )


def _embedding(path: ModelPath, embedding: Embedding) -> EmbeddingEntry:
    structure = path.blocks[-1].structure
    result = value_types(structure)[structure.returns[0]]
    width = None if result is None else result.shape[-1]
    assert isinstance(width, int), "a vector has a size"
    widths = embedding.widths
    return EmbeddingEntry(
        width=width,
        is_normalized=embedding.is_normalized,
        widths=widths if widths is None else tuple(item for item in widths if item <= width),
    )


def _segments(graph: UnifiedGraph) -> tuple[SegmentEntry, ...]:
    through: dict[str, list[int]] = {}
    for index, chain in enumerate(graph.chains):
        through.setdefault(chain.path.digest, []).append(index)
    return tuple(
        SegmentEntry(
            path=segment.paths[0],
            first=segment.first,
            count=segment.count,
            first_kv_layer=segment.first_kv_layer,
            chains=tuple(sorted(chain for path in segment.paths for chain in through[path])),
            cut=CutEntry(
                kind=segment.cut.kind,
                chains=tuple(through[path][0] for path in segment.cut.witnesses),
                differs=segment.cut.differs,
            ),
        )
        for segment in graph.segments
    )


def _block(block: Block) -> BlockEntry:
    return BlockEntry(
        structure=block.structure_digest,
        tensors=dict(block.tensors),
        binds=dict(block.binds),
        prelude=block.prelude,
        contexts=block.contexts,
    )


def _path(path: ModelPath) -> PathEntry:
    return PathEntry(
        blocks=tuple(block.digest for block in path.blocks),
        kv_layers=tuple(
            KvLayerEntry(kv_heads=kv.kv_heads, head_dim=kv.head_dim, window=kv.window, dtype=kv.dtype)
            for kv in path.kv_layers
        ),
        dtype=path.dtype,
        prefixes=path.prefixes,
    )


def _app(app: App, tenant: Tenant, graph: UnifiedGraph, placement: Placement) -> AppEntry:
    return AppEntry(
        tenant=tenant.name,
        app=app.name,
        model=app.model,
        chain=graph.chain_of[app.model],
        isolation_group=isolation_group(app, tenant),
        weight=float(tenant.weight),
        ttft_s=_ttft_s(app),
        tpot_s=_tpot_s(app, graph),
        priority=app.priority,
        served=float(placement.served.get(app.address, 1)),
    )


def _ttft_s(app: App) -> float | None:
    """The target that most requests are to meet, if there are several."""
    target = app.slo.most("ttft")
    return None if target is None else float(target)


def _tpot_s(app: App, graph: UnifiedGraph) -> float | None:
    target = least_tpot_s(app, graph.chains[graph.chain_of[app.model]].path.max_model_len)
    return None if target is None else float(target)


def _items(deployment: Deployment) -> list[tuple[str, Base | FineTune]]:
    items: dict[str, Base | FineTune] = {**deployment.bases, **deployment.fine_tunes}
    return sorted(items.items())


def _written(source: Source | Assumption) -> str | None:
    match source:
        case LocalSource(written=written):
            return written
        case HubSource(repo=repo):
            return repo
        case _:
            return None


def _model(item: Base | FineTune, files: ModelFiles, graph: UnifiedGraph, parameters: int | None) -> ModelEntry:
    source = item.source
    return ModelEntry(
        kind=files.kind,
        source=_written(source),
        parameters=parameters,
        hub=isinstance(source, HubSource),
        revision=None if isinstance(source, Assumption) else commit_of(source, files.directory),
        parent=item.parent if isinstance(item, FineTune) else None,
        chain=graph.chain_of.get(item.name),
    )


def _merged(merge: Merge | None) -> MergeEntry | None:
    if merge is None:
        return None
    return MergeEntry(gain=merge.gain, private_bytes=merge.private_bytes, rounding=merge.rounding)


def _sharing(evidence: Evidence | None, zoo: Zoo | None) -> SharingEntry | None:
    """The summary; what each tensor lost goes to the zoo."""
    if evidence is None:
        return None
    assert zoo is not None, "evidence comes from weights"
    return SharingEntry(
        verdict=evidence.verdict,
        base=evidence.base,
        differing=evidence.differing,
        shared=evidence.shared,
        replaced=evidence.replaced,
        nbytes=sum(item.nbytes for item in evidence.tensors),
        own_bytes=sum(item.own_bytes for item in evidence.tensors),
        lost=max((item.lost for item in evidence.tensors), default=0.0),
        tensors=_tensor_evidence(evidence.tensors, zoo),
        agreement=_agreement(evidence.agreement, evidence.probe),
    )


def _quantization(quantization: Quantization | None, zoo: Zoo | None) -> QuantizationEntry | None:
    """Without a zoo there are sizes, and no errors."""
    if quantization is None:
        return None
    return QuantizationEntry(
        bits=quantization.bits,
        group=quantization.group,
        nbytes=quantization.nbytes,
        own_bytes=quantization.own_bytes,
        error=max((item.error for item in quantization.tensors), default=0.0),
        tensors=None if zoo is None else _tensor_evidence(quantization.tensors, zoo),
        agreement=_agreement(quantization.agreement, quantization.probe),
    )


def _tensor_evidence(tensors: Sequence[TensorEvidence], zoo: Zoo) -> str:
    entries = tuple(TensorEvidenceEntry(**asdict(item)) for item in tensors)
    return zoo.put_blob(canonical_json(EvidenceManifest(tensors=entries).model_dump(mode="json")).encode())


def _agreement(agreement: Agreement | None, probe: Probe | None) -> AgreementEntry | None:
    if agreement is None or probe is None:
        return None
    return AgreementEntry(probe=probe.source, probe_digest=probe.digest, **asdict(agreement))


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
    needs.add(f"devices:{len({device for instance in placement.instances for device in instance.devices})}")
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
