"""Deployments built without a spec file, for tests of the stages behind the language."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from blockc.diag import Span
from blockc.spec.deployment import (
    App,
    Base,
    Cluster,
    Deployment,
    Device,
    FineTune,
    LocalSource,
    Policy,
    Quota,
    Slo,
    Tenant,
    Traffic,
)
from tests.support.device import DEVICE

AT = Span(file="test.blk", start_line=1, start_column=1, end_line=1, end_column=2)


def source(path: Path) -> LocalSource:
    return LocalSource(path=path, written=f"./{path.name}")


def deployment(
    base: Path,
    fine_tunes: Mapping[str, tuple[str, Path]] | None = None,
    *,
    dtype: str = "float32",
    apps: Mapping[str, Mapping[str, str]] | None = None,
    memory_bytes: int = 2 << 30,
    max_model_len: int | None = 256,
    policy: Policy | None = None,
) -> Deployment:
    """One base `base`, fine-tunes `name -> (parent, directory)`, tenants `name -> {app: model}`."""
    fine_tunes = fine_tunes or {}
    apps = apps or {"acme": {name: name for name in ("base", *fine_tunes)}}
    return Deployment(
        spec_file="test.blk",
        bases={
            "base": Base(
                name="base", source=source(base), dtype=dtype, kv_cache_dtype=dtype,
                max_model_len=max_model_len, span=AT, source_span=AT,
            )
        },
        fine_tunes={
            name: FineTune(name=name, parent=parent, source=source(path), kind=None, span=AT, source_span=AT)
            for name, (parent, path) in sorted(fine_tunes.items())
        },
        cluster=Cluster(
            name="box",
            devices=(
                Device(address="local/d0", kind=DEVICE, memory_bytes=memory_bytes, reserve_bytes=0, span=AT),
            ),
            span=AT,
        ),
        tenants={
            tenant: Tenant(
                name=tenant, weight=Fraction(1), isolation="tenant", quota=Quota(), span=AT,
                apps=tuple(
                    App(tenant=tenant, name=app, model=model, traffic=Traffic(), slo=Slo(), span=AT, model_span=AT)
                    for app, model in own.items()
                ),
            )
            for tenant, own in sorted(apps.items())
        },
        policy=policy or Policy(max_rows=16, max_batched_tokens=256),
        expect=(),
        digest="0" * 64,
    )  # fmt: skip
