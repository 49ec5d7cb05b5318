"""Turn typed blocks into a :class:`~blockc.spec.deployment.Deployment`.

In: typed blocks. Out: the deployment, or None if anything does not hold together (a circle of
fine-tunes, no cluster, more reserve than memory). Invariant: called without errors before, it
either reports or returns one.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import cast

from blockc.diag import Diagnostics, Label, Span
from blockc.spec.deployment import (
    App,
    Base,
    Cluster,
    Deployment,
    Device,
    Dtype,
    Expect,
    FineTune,
    FineTuneKind,
    Isolation,
    Policy,
    Quota,
    Slo,
    Source,
    Tenant,
    Traffic,
)
from blockc.spec.digest import deployment_digest
from blockc.spec.mentions import in_dependency_order
from blockc.spec.validate import Typed
from blockc.spec.valuetypes import Percentage


def resolve(blocks: tuple[Typed, ...], *, spec_file: str, start: Span, diags: Diagnostics) -> Deployment | None:
    """Check what concerns several blocks and build the deployment. ``start``: of the root file."""
    by_kind: dict[str, list[Typed]] = {}
    for block in blocks:
        by_kind.setdefault(block.kind.name, []).append(block)
    fine_tunes = by_kind.get("finetune", [])
    _check_cycles(fine_tunes, diags)
    _check_weights(fine_tunes, diags)
    _check_cluster(by_kind.get("cluster", []), start, diags)
    if diags.has_errors:
        return None
    profiles = {block.name: block for block in by_kind.get("profile", [])}
    tenants = [_tenant(block, profiles) for block in by_kind.get("tenant", [])]
    unsigned = Deployment(
        spec_file=spec_file,
        bases={b.name: b for b in sorted(map(_base, by_kind.get("base", [])), key=_by_name)},
        fine_tunes={f.name: f for f in sorted(map(_fine_tune, fine_tunes), key=_by_name)},
        cluster=_cluster(by_kind["cluster"][0]),
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
            message = f"the fine-tune `{block.name}` is assumed, and nothing plans with assumed ones yet"
            help_ = "only `--target sim` will use `assume`; it does not exist yet: give `weights`"
            diags.report("BC208", message, at=assume.header, help=help_)
        elif "weights" not in block.spans:
            message = f"the fine-tune `{block.name}` has no `weights`"
            help_ = f'add `weights = "./adapters/{block.name}"`'
            diags.report("BC108", message, at=block.header, help=help_)


def _check_cluster(clusters: list[Typed], start: Span, diags: Diagnostics) -> None:
    line = "cluster box { node local { device d0 : cpu { memory = 16GiB } } }"
    if not clusters:
        help_ = f"say what there is to run on, such as `{line}`"
        diags.report("BC108", "the spec has no `cluster`", at=start, help=help_)
        return
    devices = [device for node in clusters[0].all("node") for device in node.all("device")]
    if not devices and not diags.has_errors:
        message = f"the cluster `{clusters[0].name}` has no device"
        diags.report("BC108", message, at=clusters[0].header, help=f"such as `{line}`")
    for device in devices:
        memory = device.get("memory")
        if isinstance(memory, int) and _reserve_bytes(device, memory) >= memory:
            diags.report(
                "BC109",
                f"the device `{device.name}` reserves all of its memory",
                at=device.spans["reserve"],
                secondary=(Label(span=device.spans["memory"], text="what it has"),),
                help="`reserve` is less than `memory`",
            )


# ----------------------------------------------------------------------- builders


def _base(block: Typed) -> Base:
    dtype = cast("Dtype", block.get("dtype"))
    kv_cache_dtype = block.get("kv_cache_dtype")
    assert block.parent_span is not None, "the schema requires a parent"
    return Base(
        name=block.name,
        source=cast("Source", block.parent),
        dtype=dtype,
        kv_cache_dtype=dtype if kv_cache_dtype == "auto" else cast("Dtype", kv_cache_dtype),
        max_model_len=cast("int | None", block.get("max_model_len")),
        span=block.header,
        source_span=block.parent_span,
    )


def _fine_tune(block: Typed) -> FineTune:
    return FineTune(
        name=block.name,
        parent=cast("str", block.parent),
        source=cast("Source", block.get("weights")),
        kind=cast("FineTuneKind | None", block.get("kind")),
        span=block.header,
        source_span=block.spans["weights"],
    )


def _cluster(block: Typed) -> Cluster:
    return Cluster(name=block.name, devices=tuple(_devices(block)), span=block.header)


def _devices(cluster: Typed) -> Iterator[Device]:
    for node in cluster.all("node"):
        for device in node.all("device"):
            memory = cast("int", device.get("memory"))
            yield Device(
                address=f"{node.name}/{device.name}",
                kind=cast("str", device.parent),
                memory_bytes=memory,
                reserve_bytes=_reserve_bytes(device, memory),
                span=device.header,
            )


def _reserve_bytes(device: Typed, memory_bytes: int) -> int:
    """Return what is reserved; a share is rounded up: a plan never uses more than was meant."""
    reserve = device.get("reserve")
    if isinstance(reserve, Percentage):
        return -(-memory_bytes * reserve.of_whole.numerator // reserve.of_whole.denominator)
    return reserve if isinstance(reserve, int) else 0


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
        ),
        slo=Slo(targets_s={name: cast("Fraction", slo[name]) for name in sorted(slo)}),
        span=block.header,
        model_span=block.spans["model"],
    )


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
    batching, kv, solver = policy.one("batching"), policy.one("kv"), policy.one("solver")
    return Policy(
        kv_page_tokens=cast("int", kv.get("page")) if kv else default.kv_page_tokens,
        max_batched_tokens=cast("int", batching.get("max_batched_tokens")) if batching else default.max_batched_tokens,
        max_rows=cast("int", batching.get("max_num_seqs")) if batching else default.max_rows,
        solver_time_limit_s=cast("Fraction", solver.get("time_limit")) if solver else default.solver_time_limit_s,
    )


def _expect(block: Typed) -> Expect:
    return Expect(memory_below_bytes=cast("int | None", block.get("memory_below")), span=block.header)
