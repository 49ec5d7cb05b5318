"""Turn typed blocks into a :class:`~blockc.spec.deployment.Deployment`.

In: typed blocks. Out: the deployment, or None if anything does not hold together (a circle of
fine-tunes, no cluster, more reserve than memory). Invariant: called without errors before, it
either reports or returns one.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, cast

from blockc.diag import Diagnostics, Label, Span
from blockc.spec.addresses import check_addresses
from blockc.spec.cluster import check_cluster, cluster_of
from blockc.spec.deployment import (
    App,
    Assumption,
    Base,
    CacheDtype,
    Deployment,
    Dtype,
    Expect,
    FineTune,
    FineTuneKind,
    Goal,
    Isolation,
    KeptIn,
    LocalSource,
    Merging,
    Overlap,
    Policy,
    Quantize,
    Quota,
    Roles,
    Sharing,
    Slo,
    Source,
    Tenant,
    Traffic,
)
from blockc.spec.digest import deployment_digest
from blockc.spec.mentions import in_dependency_order
from blockc.spec.placing import check_placing
from blockc.spec.residency import check_residency
from blockc.spec.validate import Typed


def resolve(blocks: tuple[Typed, ...], *, spec_file: str, start: Span, diags: Diagnostics) -> Deployment | None:
    """Check what concerns several blocks and build the deployment. ``start``: of the root file."""
    by_kind: dict[str, list[Typed]] = {}
    for block in blocks:
        by_kind.setdefault(block.kind.name, []).append(block)
    fine_tunes = by_kind.get("finetune", [])
    _check_cycles(fine_tunes, diags)
    _check_weights(fine_tunes, diags)
    check_cluster(by_kind.get("cluster", []), start, diags)
    _check_batching(by_kind.get("policy", []), diags)
    check_addresses(by_kind.get("cluster", []), by_kind.get("tenant", []), diags)
    placing = (by_kind.get(name, []) for name in ("cluster", "tenant", "policy"))
    check_placing(*placing, diags=diags)
    check_residency(by_kind.get("cluster", []), by_kind.get("policy", []), fine_tunes, diags)
    _check_keys(by_kind.get("tenant", []), diags)
    if diags.has_errors:
        return None
    profiles = {block.name: block for block in by_kind.get("profile", [])}
    tenants = [_tenant(block, profiles) for block in by_kind.get("tenant", [])]
    unsigned = Deployment(
        spec_file=spec_file,
        bases={b.name: b for b in sorted(map(_base, by_kind.get("base", [])), key=_by_name)},
        fine_tunes={f.name: f for f in sorted(map(_fine_tune, fine_tunes), key=_by_name)},
        cluster=cluster_of(by_kind["cluster"][0]),
        tenants={tenant.name: tenant for tenant in sorted(tenants, key=_by_name)},
        policy=_policy(by_kind.get("policy", [])),
        expect=tuple(_expect(block) for block in by_kind.get("expect", [])),
        digest="",
    )
    return deployment_digest(unsigned)


def _by_name(item: Base | FineTune | Tenant) -> str:
    return item.name


# ------------------------------------------------------------------------ checks


def _check_cycles(fine_tunes: list[Typed], diags: Diagnostics) -> None:
    blocks = {block.name: block for block in fine_tunes}
    edges = {block.name: frozenset([block.parent] if isinstance(block.parent, str) else []) for block in fine_tunes}
    _, cycles = in_dependency_order(edges)
    for cycle in cycles:
        chain = " -> ".join(f"`{name}`" for name in (*cycle[:8], cycle[0]))
        diags.report(
            "BC107",
            f"the fine-tune `{cycle[0]}` derives from itself: {chain}",
            at=blocks[cycle[0]].header,
            secondary=tuple(Label(span=blocks[name].header) for name in cycle[1:4]),
            help="one of them has to derive from a base",
        )


def _check_weights(fine_tunes: list[Typed], diags: Diagnostics) -> None:
    for block in fine_tunes:
        assume = block.one("assume")
        if assume is not None:
            _check_assumption(block, assume, diags)
        elif "weights" not in block.given:
            message = f"the fine-tune `{block.name}` has no `weights`"
            help_ = f'add `weights = "./adapters/{block.name}"`, or for `--target sim` an `assume`'
            diags.report("BC108", message, at=block.header, help=help_)


# What describes an assumed fine-tune of each kind, and whether it must.
_ASSUMED = {"lora": {"rank": True, "targets": True}, "full": {"changed_layers": False}}


def _check_assumption(block: Typed, assume: Typed, diags: Diagnostics) -> None:
    name, kind = block.name, assume.get("kind")
    if "weights" in block.given:
        diags.report(
            "BC106",
            f"the fine-tune `{name}` has `weights` and is assumed",
            at=assume.header,
            secondary=(Label(span=block.spans.get("weights", block.header), text="its files"),),
            help="keep one of them; `--target sim` needs no weights in the folder, either",
        )
    if not isinstance(kind, str):
        return  # reported already
    if block.get("kind") not in (None, kind):
        diags.report(
            "BC208",
            f"`{name}` is declared as {block.get('kind')} and assumed to be {kind}",
            at=block.spans["kind"],
            secondary=(Label(span=assume.spans["kind"], text="assumed here"),),
            help="leave one of them out",
        )
    for attribute, required in _ASSUMED[kind].items():
        absent = attribute not in assume.given or assume.values.get(attribute) == ()
        if required and absent:
            example = "rank = 16" if attribute == "rank" else 'targets = ["q_proj", "v_proj"]'
            message = f"the assumed LoRA `{name}` has no `{attribute}`"
            diags.report("BC108", message, at=assume.header, help=f"add `{example}`")
    for attribute in sorted(assume.spans.keys() - _ASSUMED[kind].keys() - {"kind"}):
        noun = "LoRA" if kind == "lora" else "full fine-tune"
        message = f"an assumed {noun} has no `{attribute}`"
        known = ", ".join(f"`{item}`" for item in _ASSUMED[kind])
        diags.report("BC102", message, at=assume.spans[attribute], help=f"it has {known}")


def _check_batching(policies: list[Typed], diags: Diagnostics) -> None:
    """A step has a token for each of its rows, also where it computes a part of its tokens only."""
    policy = _policy(policies)
    batching = policies[0].one("batching") if policies else None
    least = policy.max_rows * policy.prefill_parts
    if batching is None or policy.max_batched_tokens >= least:
        return
    parts = f" in {policy.prefill_parts} parts" if policy.prefill_parts > 1 else ""
    names = ("max_batched_tokens", "max_num_seqs", "prefill")
    first, *others = [batching.spans[name] for name in names if name in batching.spans]
    diags.report(
        "BC109",
        f"a step of {policy.max_batched_tokens} tokens{parts} has less than one for each of {policy.max_rows} requests",
        at=first,
        secondary=tuple(Label(span=span) for span in others),
        help=f"`max_batched_tokens` of at least {least}, or fewer requests" + (" or parts" if parts else ""),
    )


def _check_keys(tenants: list[Typed], diags: Diagnostics) -> None:
    """A key is one tenant's."""
    owners: dict[str, Typed] = {}
    for tenant in tenants:
        for name in cast("tuple[str, ...]", tenant.get("keys") or ()):
            owner = owners.setdefault(name, tenant)
            if owner is not tenant:
                diags.report(
                    "BC106",
                    f"the secret `{name}` is a key of `{owner.name}` and of `{tenant.name}`",
                    at=tenant.spans["keys"],
                    secondary=(Label(span=owner.spans["keys"], text="named here first"),),
                    help="give each tenant a secret of its own",
                )


# ----------------------------------------------------------------------- builders


def _base(block: Typed) -> Base:
    dtype = cast("Dtype", block.get("dtype"))
    kv_cache_dtype, quantize = block.get("kv_cache_dtype"), block.get("quantize")
    assert block.parent_span is not None, "the schema requires a parent"
    return Base(
        name=block.name,
        source=cast("Source", block.parent),
        dtype=dtype,
        kv_cache_dtype=dtype if kv_cache_dtype == "auto" else cast("CacheDtype", kv_cache_dtype),
        max_model_len=cast("int | None", block.get("max_model_len")),
        span=block.header,
        source_span=block.parent_span,
        quantize=quantize if isinstance(quantize, Quantize) else None,
        quantize_span=block.spans.get("quantize"),
    )


def _fine_tune(block: Typed) -> FineTune:
    assume = block.one("assume")
    return FineTune(
        name=block.name,
        parent=cast("str", block.parent),
        source=_assumption(assume) if assume is not None else cast("Source", block.get("weights")),
        kind=cast("FineTuneKind | None", block.get("kind")),
        span=block.header,
        source_span=_source_span(assume) if assume is not None else block.spans["weights"],
        merge=cast("Merging | None", block.get("merge")),
        residency=cast("KeptIn | None", block.get("residency")),
        residency_span=block.spans.get("residency"),
    )


def _assumption(assume: Typed) -> Assumption:
    return Assumption(
        kind=cast("FineTuneKind", assume.get("kind")),
        rank=cast("int | None", assume.get("rank")),
        targets=cast("tuple[str, ...]", assume.get("targets") or ()),
        changed_layers=cast("tuple[int, int] | None", assume.get("changed_layers")),
    )


def _source_span(assume: Typed) -> Span:
    """What of an assumption can disagree with the base model: the modules, or the layers."""
    return assume.spans.get("targets") or assume.spans.get("changed_layers") or assume.header


def _tenant(block: Typed, profiles: dict[str, Typed]) -> Tenant:
    quota = block.one("quota")
    return Tenant(
        name=block.name,
        weight=cast("Fraction", block.get("weight")),
        isolation=cast("Isolation", block.get("isolation")),
        quota=Quota(
            requests_per_s=cast("Fraction | None", quota.get("requests")) if quota else None,
            tokens_per_s=cast("Fraction | None", quota.get("tokens")) if quota else None,
        ),
        apps=tuple(_app(app, block.name, profiles) for app in block.all("app")),
        span=block.header,
        key_secrets=tuple(sorted(set(cast("tuple[str, ...]", block.get("keys") or ())))),
    )


def _app(block: Typed, tenant: str, profiles: dict[str, Typed]) -> App:
    profile = profiles.get(block.parent) if isinstance(block.parent, str) else None
    traffic = _merged("traffic", profile, block)
    slo = _merged("slo", profile, block)
    return App(
        tenant=tenant,
        name=block.name,
        model=cast("str", block.get("model")),
        traffic=Traffic(
            rate_rps=cast("Fraction | None", traffic.get("rate")),
            prompt_tokens=cast("int | None", traffic.get("prompt")),
            output_tokens=cast("int | None", traffic.get("output")),
            arrival_cv=_arrival_cv(traffic.get("arrival")),
            arrival_trace=_arrival_trace(traffic.get("arrival")),
        ),
        slo=Slo(targets_s={name: cast("Fraction", slo[name]) for name in sorted(slo)}),
        span=block.header,
        model_span=block.spans["model"],
        pin=cast("str | None", block.get("pin")),
        apart_from=cast("tuple[str, ...]", block.get("apart_from") or ()),
        priority=cast("int", block.get("priority")),
        replicas=cast("int", block.get("replicas")),
        spread=cast("Literal['device', 'node']", block.get("spread")),
        pin_span=block.spans.get("pin"),
        replicas_span=block.spans.get("replicas"),
        apart_span=block.spans.get("apart_from"),
        traffic_span=_nested_span("traffic", profile, block),
        slo_span=_nested_span("slo", profile, block),
    )


def _nested_span(kind: str, profile: Typed | None, app: Typed) -> Span | None:
    """Where an app's own block stands, or its profile's."""
    found = [nested for block in (app, profile) if block is not None and (nested := block.one(kind)) is not None]
    return found[0].header if found else None


def _arrival_cv(arrival: object) -> Fraction | None:
    if arrival == "poisson":
        return Fraction(1)
    return arrival if isinstance(arrival, Fraction) else None


def _arrival_trace(arrival: object) -> LocalSource | None:
    return arrival if isinstance(arrival, LocalSource) else None


def _merged(kind: str, profile: Typed | None, app: Typed) -> dict[str, object]:
    """Return the attributes of a profile's block, overridden by those of the app's own."""
    values: dict[str, object] = {}
    for block in (profile, app):
        nested = block.one(kind) if block is not None else None
        if nested is not None:
            values.update(nested.values)
    return values


def _policy(blocks: list[Typed]) -> Policy:
    if not blocks:
        return Policy()
    policy = blocks[0]
    default = Policy()
    share = policy.get("share")
    batching, kv, solver = policy.one("batching"), policy.one("kv"), policy.one("solver")
    residency, replan = policy.one("residency"), policy.one("replan")
    prefill = batching.get("prefill") if batching else None
    return Policy(
        kv_page_tokens=cast("int", kv.get("page")) if kv else default.kv_page_tokens,
        max_batched_tokens=cast("int", batching.get("max_batched_tokens")) if batching else default.max_batched_tokens,
        max_rows=cast("int", batching.get("max_num_seqs")) if batching else default.max_rows,
        max_rows_span=batching.spans.get("max_num_seqs") if batching else None,
        prefill_parts=prefill if isinstance(prefill, int) else default.prefill_parts,
        overlap=cast("Overlap", batching.get("overlap")) if batching else default.overlap,
        solver_time_limit_s=cast("Fraction", solver.get("time_limit")) if solver else default.solver_time_limit_s,
        merge=cast("Merging", policy.get("merge")),
        overload=cast("Literal['refuse', 'shed']", policy.get("overload")),
        share=share if isinstance(share, Sharing) else default.share,
        share_span=policy.spans.get("share"),
        sides_limit_bytes=cast("int | None", residency.get("fine_tunes")) if residency else None,
        sides_limit_span=residency.spans.get("fine_tunes") if residency else None,
        blocks_limit_bytes=cast("int | None", residency.get("blocks")) if residency else None,
        blocks_limit_span=residency.spans.get("blocks") if residency else None,
        host_limit_bytes=cast("int | None", residency.get("host")) if residency else None,
        headroom=cast("Fraction", solver.get("headroom")) if solver else default.headroom,
        headroom_span=solver.spans.get("headroom") if solver else None,
        gap=cast("Fraction", solver.get("gap")) if solver else default.gap,
        roles=cast("Roles", solver.get("roles")) if solver else default.roles,
        roles_span=solver.spans.get("roles") if solver else None,
        objective=cast("tuple[Goal, ...]", (solver.get("objective") if solver else None) or ()),
        move_budget_bytes=cast("int | None", replan.get("move_budget")) if replan else None,
        stages=_stages(policy.get("pipeline")),
        stages_span=policy.spans.get("pipeline"),
    )


def _stages(pipeline: object) -> int | None:
    return pipeline if isinstance(pipeline, int) else None if pipeline == "off" else 0


def _expect(block: Typed) -> Expect:
    return Expect(
        memory_below_bytes=cast("int | None", block.get("memory_below")),
        slo_attainment=cast("Fraction | None", block.get("slo_attainment")),
        span=block.header,
    )
