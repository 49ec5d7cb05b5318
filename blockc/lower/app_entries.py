"""The tables that say for whom: apps, and the models of the spec with what was found out about them.

In: the deployment, files, graph and placement, and what merging, sharing and quantizing found. Out: entries of a plan,
and in the zoo one manifest of evidence for each model that was compared or quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from blockc.evaluate import Agreement, Probe
from blockc.ir import canonical_json, json_digest
from blockc.merge import Merge, Merged, Weighed
from blockc.place import Placement, least_tpot_s
from blockc.plan import (
    AgreementEntry,
    AppEntry,
    EvidenceManifest,
    MergeEntry,
    ModelEntry,
    QuantizationEntry,
    SharingEntry,
    TensorEvidenceEntry,
    WeighedEntry,
)
from blockc.quantize import Quantization
from blockc.share import Evidence, TensorEvidence
from blockc.spec.deployment import (
    App,
    Assumption,
    Base,
    Deployment,
    FineTune,
    HubSource,
    LocalSource,
    Source,
    Tenant,
)
from blockc.tune import ModelFiles
from blockc.tune.source import commit_of
from blockc.unify import UnifiedGraph
from blockc.zoo import Zoo


def app_entries(deployment: Deployment, graph: UnifiedGraph, placement: Placement) -> tuple[AppEntry, ...]:
    """By tenant, then in the order of the spec."""
    return tuple(_app(app, tenant, graph, placement) for tenant in deployment.tenants.values() for app in tenant.apps)


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


def isolation_group(app: App, tenant: Tenant) -> str:
    """Who may share cached state: the tenant; with strict isolation the app alone."""
    names = [tenant.name, app.name] if tenant.isolation == "strict" else [tenant.name]
    return json_digest("isolation v1", names)


def _ttft_s(app: App) -> float | None:
    """The target that most requests are to meet, if there are several."""
    target = app.slo.most("ttft")
    return None if target is None else float(target)


def _tpot_s(app: App, graph: UnifiedGraph) -> float | None:
    target = least_tpot_s(app, graph.chains[graph.chain_of[app.model]].path.max_model_len)
    return None if target is None else float(target)


def model_entries(
    deployment: Deployment,
    files: Mapping[str, ModelFiles],
    graph: UnifiedGraph,
    *,
    parameters: Mapping[str, int],
    zoo: Zoo | None,
    merged: Merged,
    evidence: Mapping[str, Evidence],
    quantizations: Mapping[str, Quantization],
) -> dict[str, ModelEntry]:
    """By name, bases and fine-tunes together."""
    items: dict[str, Base | FineTune] = {**deployment.bases, **deployment.fine_tunes}
    return {
        name: _model(item, files[name], graph, parameters.get(name)).model_copy(
            update={
                "merged": _merged(merged.merges.get(name)),
                "weighed": _weighed(merged.weighed.get(name)),
                "sharing": _sharing(evidence.get(name), zoo),
                "quantization": _quantization(quantizations.get(name), zoo),
            }
        )
        for name, item in sorted(items.items())
    }


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


def _written(source: Source | Assumption) -> str | None:
    match source:
        case LocalSource(written=written):
            return written
        case HubSource(repo=repo):
            return repo
        case _:
            return None


def _merged(merge: Merge | None) -> MergeEntry | None:
    if merge is None:
        return None
    return MergeEntry(gain=merge.gain, private_bytes=merge.private_bytes, rounding=merge.rounding)


def _weighed(weighed: Weighed | None) -> WeighedEntry | None:
    if weighed is None:
        return None
    return WeighedEntry(
        goals=weighed.goals, beside=weighed.beside, merged=weighed.merged, rounding=weighed.rounding
    )  # fmt: skip


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
