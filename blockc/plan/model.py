"""``ExecutionPlan``: the file between the compiler and the runtime.

Canonical JSON: the same spec and weights give the same bytes. Everything is named by content digest or by index
into the plan's own tables; names of tenants and apps appear in ``apps`` only and never key a cache.
"""

from __future__ import annotations

from typing import Literal

from blockc.plan.app_entries import AppEntry, BaselineEntry, ModelEntry, PriceEntry, TenantEntry
from blockc.plan.entry import Digest, Entry
from blockc.plan.graph_entries import BlockEntry, ChainEntry, KvGroupEntry, PathEntry, SegmentEntry
from blockc.plan.place_entries import (
    DeviceEntry,
    EdgeEntry,
    InstanceEntry,
    LinkEntry,
    MemoryEntry,
    RolesEntry,
    RouteEntry,
    RuleEntry,
    SolverEntry,
)

FORMAT_VERSION = 1


class BatchingEntry(Entry):
    """Limits of one step.

    ``prefill_parts``: in up to so many steps a chunk of a prompt goes through the layers. ``overlaps``: a step is
    issued while the one before runs.
    """

    max_batched_tokens: int
    max_rows: int
    prefill_parts: int = 1
    overlaps: bool = False


class ExecutionPlan(Entry):
    """The whole plan. `graph_entries`, `place_entries` and `app_entries` have its tables."""

    format_version: Literal[1] = 1
    compiler: str
    spec_digest: Digest
    target: Literal["cpu", "cuda", "sim"]  # sim: tensors and manifests have digests of their names, and no content
    requires: tuple[str, ...]  # what a runtime must have to serve it, sorted
    structures: dict[Digest, str]
    blocks: dict[Digest, BlockEntry]
    paths: dict[Digest, PathEntry]
    chains: tuple[ChainEntry, ...]
    segments: tuple[SegmentEntry, ...]  # in an order in which every chain meets its own in order
    crossing: tuple[int, int] | None = None  # two segments whose sets of chains overlap; None: sharing is laminar
    kv_groups: tuple[KvGroupEntry, ...]
    nodes: tuple[str, ...]
    devices: tuple[DeviceEntry, ...]
    links: tuple[LinkEntry, ...]
    instances: tuple[InstanceEntry, ...]
    edges: tuple[EdgeEntry, ...]
    routes: tuple[RouteEntry, ...]
    roles: RolesEntry | None = None  # None: every instance reads the prompts that it answers
    apps: tuple[AppEntry, ...]
    models: dict[str, ModelEntry]
    memory: tuple[MemoryEntry, ...]
    baselines: BaselineEntry
    price: PriceEntry | None = None  # None: some device has none
    rules: tuple[RuleEntry, ...] = ()
    tenants: tuple[TenantEntry, ...] = ()
    solver: SolverEntry
    batching: BatchingEntry
