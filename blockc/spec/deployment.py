"""``Deployment``: what a spec means. The only thing that later stages see of it.

Everything is resolved: references are names of things that exist, quantities are plain numbers in
the unit that their name says, sources are absolute. Every item keeps the span that declared it, so
that later stages can point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from blockc.diag import Span

Dtype = Literal["float32", "bfloat16", "float16"]
CacheDtype = Literal["float32", "bfloat16", "float16", "float8_e4m3fn", "int8"]
# Whether a fine-tune gets private weights in place of sides.
Merging = Literal["never", "auto", "always"]
Overlap = Literal["auto", "on", "off"]
Roles = Literal["shared", "auto"]
# Where a fine-tune's own blocks are while nobody uses them: on the device, in the host's memory, or in the zoo.
KeptIn = Literal["pin", "stream", "cold"]
FineTuneKind = str  # a word of `blockc.fine_tunes`
Isolation = Literal["tenant", "strict", "devices"]

# One message between two nodes over Ethernet: what kernels and switches add.
NODE_LATENCY_S: Final = Fraction(20, 10**6)
# Of what there is to be little of, first things first.
Goal = Literal["devices", "cost", "communication", "memory", "peak_load", "slo"]
# Of fields that came later: while they say nothing, the digest of a spec is what it was without them.
LATER: Final[Mapping[str, Any]] = MappingProxyType({"later": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSource:
    """A directory on disk. ``path`` is absolute; ``written`` is how the spec spells it."""

    path: Path
    written: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A repository on the Hugging Face hub."""

    repo: str
    revision: str | None = None


Source = LocalSource | HubSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """In place of files: a LoRA of ``rank`` at ``targets``, or a full fine-tune that changes some layers.

    ``changed_layers``: the first and the last, both included; None: it changes everything.
    """

    kind: FineTuneKind
    rank: int | None = None
    targets: tuple[str, ...] = ()
    changed_layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Matrices as integers of ``bits``, with a scale for each ``group`` of a row; None: for each row.

    What that does to the model is measured on ``probe``; None: on random tokens.
    """

    bits: int
    group: int | None
    probe: LocalSource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model. ``max_model_len`` None means the model's own limit, ``quantize`` None the matrices as they are."""

    name: str
    source: Source
    dtype: Dtype
    kv_cache_dtype: CacheDtype
    max_model_len: int | None
    span: Span
    source_span: Span
    quantize: Quantize | None = None
    quantize_span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """A fine-tune of ``parent``, a base or fine-tune.

    ``kind`` None: as its files say; ``merge`` None: the policy's; ``residency`` None: placement decides.
    """

    name: str
    parent: str
    source: Source | Assumption
    kind: FineTuneKind | None
    span: Span
    source_span: Span
    merge: Merging | None = None
    residency: KeptIn | None = field(default=None, metadata=LATER)
    residency_span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device. ``memory_bytes`` is what it has, ``reserve_bytes`` what a plan may not use.

    ``price_per_hour``: in whatever money the spec counts in.
    """

    address: str  # "local/d0": node, then device
    kind: str  # of the device catalogue
    memory_bytes: int
    reserve_bytes: int
    span: Span
    price_per_hour: Fraction | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The devices of a deployment, in the order of the spec.

    ``link_bytes_per_s``: what one sends to another of its node; None: as the catalogue says. ``node_bytes_per_s``: what
    one node sends to another, with ``node_latency_s`` for each message; None: nothing.
    """

    name: str
    devices: tuple[Device, ...]
    span: Span
    link_bytes_per_s: Fraction | None = field(default=None, metadata=LATER)
    node_bytes_per_s: Fraction | None = field(default=None, metadata=LATER)
    node_latency_s: Fraction = field(default=NODE_LATENCY_S, metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Expected load of an app.

    ``arrival_cv``: coefficient of variation of the gaps between requests (Poisson: 1). ``arrival_trace``: in its place,
    a file of requests that came once, whose rate and lengths are scaled to those given here.
    """

    rate_rps: Fraction | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    arrival_cv: Fraction | None = None
    arrival_trace: LocalSource | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Latency targets in seconds, keyed ``ttft_p95``, ``tpot_p95``, ``e2e_p95`` and so on."""

    targets_s: Mapping[str, Fraction] = field(default_factory=dict)

    def most(self, metric: str) -> Fraction | None:
        """The target of a metric that most requests are to meet: that of its highest percentile."""
        own = [(name, target) for name, target in self.targets_s.items() if name.startswith(f"{metric}_")]
        return max(own)[1] if own else None


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """What clients call: a request's `model` is ``tenant/app``. ``model``: a base or fine-tune.

    ``pin``: the node, or node/device, that it runs on; ``apart_from``: addresses of apps that it shares no device with.
    ``priority``: the lowest goes first. ``replicas``: instances that it runs in at least, each on another node where
    ``spread`` is "node".
    """

    tenant: str
    name: str
    model: str
    traffic: Traffic
    slo: Slo
    span: Span
    model_span: Span
    pin: str | None = field(default=None, metadata=LATER)
    apart_from: tuple[str, ...] = field(default=(), metadata=LATER)
    priority: int = field(default=0, metadata=LATER)
    replicas: int = field(default=1, metadata=LATER)
    spread: Literal["device", "node"] = field(default="device", metadata=LATER)
    pin_span: Span | None = field(default=None, compare=False)
    replicas_span: Span | None = field(default=None, compare=False)
    apart_span: Span | None = field(default=None, compare=False)
    traffic_span: Span | None = field(default=None, compare=False)
    slo_span: Span | None = field(default=None, compare=False)

    @property
    def address(self) -> str:
        """What a request names as its `model`."""
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Limits of a tenant; None: no limit."""

    requests_per_s: Fraction | None = None
    tokens_per_s: Fraction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant. ``weight``: its fair share.

    ``isolation`` "strict": its apps are separated, too; "devices": nobody else's run on its devices. ``key_secrets``:
    names of the secrets that are its keys, sorted.
    """

    name: str
    weight: Fraction
    isolation: Isolation
    quota: Quota
    apps: tuple[App, ...]
    span: Span
    key_secrets: tuple[str, ...] = field(default=(), metadata=LATER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """What counts as the same block.

    ``exact``: what is equal. ``delta``: a full fine-tune's matrices may lose ``max_error`` of their change. ``approx``:
    blocks may be replaced by similar ones while ``metric`` of the whole model on the ``probe`` stays within ``bound``.
    """

    mode: Literal["exact", "delta", "approx"] = "exact"
    max_error: Fraction | None = None
    metric: Literal["kl", "top1", "perplexity"] | None = None
    bound: Fraction | None = None
    probe: LocalSource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to compile. Fields of the spec that nothing acts on yet are not here: they warn BC804."""

    kv_page_tokens: int = 16
    max_batched_tokens: int = 2048
    max_rows: int = 64
    prefill_parts: int = field(default=1, metadata=LATER)
    overlap: Overlap = field(default="auto", metadata=LATER)
    solver_time_limit_s: Fraction = Fraction(60)
    merge: Merging = "never"
    share: Sharing = Sharing()
    share_span: Span | None = field(default=None, compare=False)
    sides_limit_bytes: int | None = None
    sides_limit_span: Span | None = field(default=None, compare=False)
    blocks_limit_bytes: int | None = field(default=None, metadata=LATER)
    blocks_limit_span: Span | None = field(default=None, compare=False)
    host_limit_bytes: int | None = field(default=None, metadata=LATER)
    headroom: Fraction = field(default=Fraction(0), metadata=LATER)
    headroom_span: Span | None = field(default=None, compare=False)
    max_rows_span: Span | None = field(default=None, compare=False)
    gap: Fraction = field(default=Fraction(0), metadata=LATER)
    roles: Roles = field(default="shared", metadata=LATER)
    roles_span: Span | None = field(default=None, compare=False)
    move_budget_bytes: int | None = field(default=None, metadata=LATER)
    overload: Literal["refuse", "shed"] = field(default="refuse", metadata=LATER)
    objective: tuple[Goal, ...] = field(default=(), metadata={"later": True, "ordered": True})
    stages: int | None = field(default=0, metadata=LATER)  # of every model; 0: of what fits no cell; None: of none
    stages_span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What must hold: of the plan ``memory_below``, of its simulation ``slo_attainment``, a part of all requests."""

    memory_below_bytes: int | None
    span: Span
    slo_attainment: Fraction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A whole spec, resolved. Mappings are sorted by name; tuples keep the order of the spec."""

    spec_file: str
    bases: Mapping[str, Base]
    fine_tunes: Mapping[str, FineTune]
    cluster: Cluster
    tenants: Mapping[str, Tenant]
    policy: Policy
    expect: tuple[Expect, ...]
    digest: str  # of the meaning, not of the text: comments and order of declarations do not change it

    @property
    def apps(self) -> tuple[App, ...]:
        """All apps, by tenant, then in the order of the spec."""
        return tuple(app for tenant in self.tenants.values() for app in tenant.apps)


def base_of(deployment: Deployment, model: str) -> Base:
    """The base that a model is, or stands on."""
    while model in deployment.fine_tunes:
        model = deployment.fine_tunes[model].parent
    return deployment.bases[model]
