"""``ExecutionPlan``: the file between the compiler and the runtime.

Canonical JSON: the same spec and weights give the same bytes. Everything is named by content digest or by index
into the plan's own tables; names of tenants and apps appear in ``apps`` only and never key a cache.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from blockc.fine_tunes import FULL
from blockc.ir.identity import block_parts
from blockc.ir.tensor import QuantizedRef, TensorRef
from blockc.plan.entry import Entry

FORMAT_VERSION = 1

Digest = str


class BlockEntry(Entry):
    """A structure with the tensors and scalars bound to it. ``prelude`` is the block whose outputs are its context."""

    structure: Digest
    tensors: dict[str, QuantizedRef | TensorRef]
    binds: dict[str, float | int | None]
    prelude: Digest | None
    contexts: tuple[int, ...]  # for each context input of the structure: which output of the prelude

    @property
    def parts(self) -> dict[str, str]:
        """What its identity consists of, by name (see `blockc.ir.identity`)."""
        return block_parts(
            structure=self.structure,
            binds=self.binds,
            tensors=self.tensors,
            prelude=self.prelude,
            contexts=self.contexts,
        )


class KvLayerEntry(Entry):
    """The shape of one attention layer's cache."""

    kv_heads: int
    head_dim: int
    window: int | None  # tokens; None: full attention
    dtype: str  # safetensors spelling


class PathEntry(Entry):
    """A sequence of occurrences of blocks, from token ids to logits, shared by all chains that pass it.

    ``prefixes``: what stands before the parameter names of each occurrence in the model that it came from. Empty where
    no names are known; nothing that serves reads it.
    """

    blocks: tuple[Digest, ...]
    kv_layers: tuple[KvLayerEntry, ...]  # one per attention op, in order
    dtype: str
    prefixes: tuple[str, ...] = ()


class ChainKvEntry(Entry):
    """A chain's share of one KV group: the domain of the group's last layer (see ``KvDomain`` in the glossary)."""

    group: int
    domain: Digest


class EmbeddingEntry(Entry):
    """The vector that a model yields for a text: ``width`` values.

    ``is_normalized``: of length 1. ``widths``: to how many values it may be cut (Matryoshka); None: to any.
    """

    width: int
    is_normalized: bool
    widths: tuple[int, ...] | None = ()


class ChainEntry(Entry):
    """A model version: a path, sides on it, and the assets that belong to it. ``digest`` identifies the version."""

    digest: Digest
    path: Digest
    sides: Digest | None  # manifest in the zoo (`SideManifest`)
    side_kinds: tuple[str, ...]  # what its sides are, such as "low_rank@linear", sorted; empty without sides
    side_rank: int  # largest rank at any site, 0 without terms of low rank
    segments: tuple[int, ...]
    kv: tuple[ChainKvEntry, ...]  # in layer order
    assets: dict[str, Digest]  # "tokenizer.json", "chat_template.jinja", "generation_config.json", ...: zoo blobs
    vocab_size: int
    max_model_len: int
    stop_token_ids: tuple[int, ...]
    virtual_tokens: tuple[int, ...] = ()  # stand before every prompt, and no client sees them
    bank: int | None = None  # of its instance's `side_slots`; None: its sides, if it has any, are always resident
    labels: tuple[str, ...] = ()  # of a model that yields scores of classes: their names, in the order of the scores
    each_token: bool = False  # of those scores there are some for each token of a text
    embedding: EmbeddingEntry | None = None  # of a model that yields one vector of a text in place of tokens

    @property
    def vector_width(self) -> int:
        """How many values a text, or each of its tokens, yields: scores or an embedding; 0: its model draws tokens."""
        return len(self.labels) if self.embedding is None else self.embedding.width


class CutEntry(Entry):
    """Why a segment ends, with two chains that prove that it could not go on.

    ``part``: both pass the segment, and their next blocks differ. ``join``: all go on together, and the second chain
    comes in after another last block. ``end``: the chains end. ``differs``: what tells the two blocks apart, such as
    ``tensor:mlp.up_proj.weight``, ``bind:window0``, ``structure``, ``prelude``; ``end`` where the second chain ends.
    """

    kind: Literal["part", "join", "end"]
    chains: tuple[int, ...]
    differs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(self.differs)})" if self.differs else self.kind


class SegmentEntry(Entry):
    """A maximal run of occurrences that the same chains pass: launched at once for the rows of all of them."""

    path: Digest  # a path that contains it; all chains through it have the same blocks there
    first: int  # occurrence index in that path
    count: int
    first_kv_layer: int
    chains: tuple[int, ...]
    cut: CutEntry


class KvGroupEntry(Entry):
    """A run of layers alike in shape in which no two chains' domains diverge: one page pool, one table a row."""

    first_layer: int
    layers: int
    kv_heads: int
    head_dim: int
    window: int | None
    dtype: str
    page_tokens: int

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: keys and values of ``page_tokens`` tokens in all layers of the group."""
        from blockc.ir.tensor import cached_bytes

        return 2 * self.layers * self.kv_heads * self.page_tokens * cached_bytes(self.dtype, self.head_dim)


class DeviceEntry(Entry):
    """A device. ``address`` is node/device."""

    address: str
    node: str
    kind: str
    memory_bytes: int
    reserve_bytes: int


class LinkEntry(Entry):
    """A link between two devices (indices into ``devices``).

    A cluster's links of one sort are alike: one that is named within a node stands for all nodes, one between two nodes
    for any two. Of several the slowest counts.
    """

    source: int
    target: int
    bytes_per_s: int
    latency_s: float


class LoadEntry(Entry):
    """What an instance is expected to carry, by the cost model that placed it.

    ``cadence_s``: each of its segments runs once in it; None: nothing is expected. ``traffic`` and ``sweeps`` are parts
    of its time, of which it may be busy for ``limit``. ``rows``: requests at once, at least; ``batches``: segment ->
    tokens of a launch that decodes, a power of two.
    """

    cadence_s: float | None
    traffic: float
    sweeps: float
    limit: float
    rows: float
    batches: dict[int, int]


class TurnEntry(Entry):
    """A segment whose own weights are read when a request wants them, and go when others' are wanted more.

    Its own are the tensors that no other segment binds (`blockc.ir.turns`): ``nbytes`` of them on each device.
    ``kept``: where they are meanwhile, in the zoo or, once they have been read, in the host's memory. ``uses_rps``:
    requests a second that are expected to want them; 0: nobody has said.
    """

    segment: int
    nbytes: int
    kept: Literal["zoo", "host"]
    uses_rps: float = 0.0


class StageEntry(Entry):
    """Blocks ``first .. first + count - 1`` of each chain of an instance, on devices that split each of them."""

    first: int  # occurrence index, as in `SegmentEntry`
    count: int
    devices: tuple[int, ...]


class InstanceEntry(Entry):
    """A run of segments on devices, with the pages it owns of each KV group.

    ``stages``: a pipeline. Its devices hold parts of the path one after the other, and of every page the layers of
    their own part; hidden states go from stage to stage. Empty: all devices split all blocks.
    ``side_slots``: so many fine-tunes of a bank have their sides in memory at once; a bank that is not named has a slot
    for each of its own. ``turns``: segments whose weights are in memory by turns, at once no more than ``room_bytes``
    of them on each device; those of all others always are.
    """

    segments: tuple[int, ...]
    devices: tuple[int, ...]
    chains: tuple[int, ...]
    max_rows: int
    kv_pages: dict[int, int]  # KV group -> pages
    side_slots: dict[int, int] = Field(default_factory=dict)  # bank -> slots
    turns: tuple[TurnEntry, ...] = ()
    room_bytes: int = 0
    load: LoadEntry | None = None  # None: placed by bytes; of a pipeline that of its busiest stage
    stages: tuple[StageEntry, ...] = ()

    @property
    def width(self) -> int:
        """Devices that split one block."""
        return len(self.stages[0].devices if self.stages else self.devices)

    def stage_of(self, device: int) -> StageEntry | None:
        """What a device holds of a pipeline; None: it has a share of everything."""
        return next((stage for stage in self.stages if device in stage.devices), None)


class EdgeEntry(Entry):
    """Hidden states ``[T, hidden]`` going from one instance to another."""

    source: int
    target: int


class RouteEntry(Entry):
    """How a chain may travel: alternatives, each a sequence of instances.

    ``weights``: which part of its requests goes each way, adding up to 1; empty where nobody has said. ``ttft_s`` and
    ``tpot_s``: the 95th percentiles that are expected on the slowest of them; None: nothing is expected.
    """

    chain: int
    alternatives: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] = ()
    ttft_s: float | None = None
    tpot_s: float | None = None


class MemoryEntry(Entry):
    """Bytes on one device, by the same `Layout` that the runtime allocates by.

    ``blocks_bytes``: the room of segments that take turns, and what reading one of them takes beside it.
    """

    device: int
    weights_bytes: int
    sides_bytes: int
    kv_bytes: int
    workspace_bytes: int
    reserve_bytes: int
    capacity_bytes: int
    blocks_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """All parts together, the reserve included."""
        held = self.weights_bytes + self.blocks_bytes + self.sides_bytes
        return held + self.kv_bytes + self.workspace_bytes + self.reserve_bytes


class BaselineEntry(Entry):
    """Weight bytes: every model on its own (PM), base shared among adapters only (PS), and ours."""

    pm_bytes: int
    ps_bytes: int
    ours_bytes: int


class PriceRangeEntry(Entry):
    """Money an hour: no placement costs less than ``least``, and one was ``found`` at that; None: none was tried."""

    least: float
    found: float | None


class PriceEntry(Entry):
    """Money an hour, in whatever the spec counts in: of the devices that the plan uses, and of other ways to serve.

    ``pm``: every model by itself; ``ps``: adapters on shared bases; None: that fits nowhere.
    """

    per_hour: float
    pm: PriceRangeEntry | None
    ps: PriceRangeEntry | None


class TenantEntry(Entry):
    """Weight bytes of one tenant, its quota, and its keys.

    ``pm_bytes``: its apps' models, each by itself. ``private_bytes``: tensors that no other tenant takes;
    ``shared_bytes``: those that others take too, in full; ``fair_bytes``: every tensor divided among its takers, so
    that all tenants' together are the plan's ``ours_bytes``. What it may use in a minute; None: as much as it likes.
    ``key_secrets``: names of secrets whose values are its keys. A plan holds no value of any.
    """

    tenant: str
    pm_bytes: int
    private_bytes: int
    shared_bytes: int
    fair_bytes: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    key_secrets: tuple[str, ...] = ()


class AppEntry(Entry):
    """What clients call as ``tenant/app``. ``isolation_group`` keys caches together with content.

    ``ttft_s``: the time to first token that is aimed at, ``tpot_s``: to each further one, as the spec's targets add up;
    None: none in particular. ``priority``: of requests that say none, among their tenant's; the lowest goes first.
    ``served``: the part of its expected load that has a place.
    """

    tenant: str
    app: str
    model: str
    chain: int
    isolation_group: Digest
    weight: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    priority: int = 0
    served: float = 1.0

    @property
    def address(self) -> str:
        """What clients send as `model`."""
        return f"{self.tenant}/{self.app}"


class RuleEntry(Entry):
    """A line of the spec that says where chains may run: see `blockc.place.PlaceRule`. Nothing that serves reads it.

    ``chains`` are named in it; ``devices``: those of a pin; ``count``: so many instances, or nodes, at least.
    """

    kind: Literal["pin", "apart", "alone", "replicas", "nodes"]
    text: str
    chains: tuple[int, ...]
    devices: tuple[int, ...] = ()
    count: int = 1


class AgreementEntry(Entry):
    """How far a model is from its original on a probe: see `blockc.evaluate.Agreement`."""

    probe: str
    probe_digest: Digest
    tokens: int
    kl_mean: float
    kl_max: float
    top1: float
    perplexity: float
    original_perplexity: float


class SharingEntry(Entry):
    """How a full fine-tune is kept on the blocks of ``base``: see `blockc.share.Evidence`.

    ``tensors``: a blob with what each tensor lost (`EvidenceManifest`); ``own_bytes``: of the tensors that it does not
    store for itself, ``nbytes``: of what it stores in their place; ``lost``: the most that any lost of its change.
    """

    verdict: Literal["exact", "delta", "approx"]
    base: str
    differing: int
    shared: int
    replaced: tuple[int, ...]
    nbytes: int
    own_bytes: int
    lost: float
    tensors: Digest
    agreement: AgreementEntry | None


class QuantizationEntry(Entry):
    """What a model's matrices are kept as: see `blockc.quantize.Quantization`.

    ``tensors``: a blob with the error of each (`EvidenceManifest`); ``own_bytes``: of what they were, ``nbytes``: of
    what they are; ``error``: the largest, relative Frobenius norm.
    """

    bits: int
    group: int | None
    nbytes: int
    own_bytes: int
    error: float
    tensors: Digest | None
    agreement: AgreementEntry | None


class MergeEntry(Entry):
    """Why a fine-tune has private weights in place of sides: see `blockc.merge.Merge`."""

    gain: float
    private_bytes: int
    rounding: float


class ModelEntry(Entry):
    """A base or fine-tune of the spec: where it came from, for `blockc verify` and for people.

    ``kind``: ``base``, or a word of `blockc.fine_tunes`. ``source`` is a path as the spec writes it, relative to the
    spec, or a hub repository; None where the spec only assumes what the files will be. ``parameters``: of a full model
    by its configuration, tied ones once; None for an adapter. ``chain`` is None for a model that no app uses. Nothing
    that serves reads this table.
    """

    kind: str
    source: str | None
    parameters: int | None
    hub: bool
    revision: str | None
    parent: str | None
    chain: int | None
    merged: MergeEntry | None = None
    sharing: SharingEntry | None = None
    quantization: QuantizationEntry | None = None

    @property
    def is_full(self) -> bool:
        """Whether it is a whole model rather than an adapter on one."""
        return self.kind in ("base", FULL)


class SearchEntry(Entry):
    """What was known after ``units`` of the solver's deterministic time. ``value`` None: no plan yet."""

    units: float
    value: float | None
    bound: float


class SolverEntry(Entry):
    """How good the placement is and how it was found.

    ``objective``: what there is to be little of, first things first; ``values`` has what the plan has of each: devices,
    money an hour (``cost``), bytes a second between devices of a cell (``communication``), resident bytes (``memory``),
    and of the busiest instance the part of its time (``peak_load``), or of what its targets allow (``slo``). ``value``
    and ``bound`` are of the first. ``bound_kind``: what proves the bound: the sum of bytes (``bytes``), every load and
    sweep where it is cheapest (``closed form``), counts of cells by type (``counts``), or the exact model (``flat``).
    """

    objective: tuple[str, ...]
    value: float
    values: tuple[float, ...] = ()  # empty where only the first is known
    bound: float
    gap: float
    status: str
    seed: int
    solver: str
    bound_kind: Literal["bytes", "closed form", "counts", "flat"] = "bytes"
    history: tuple[SearchEntry, ...] = ()
    moved_bytes: int | None = None  # weights to load where the plan before had others; None: there was none

    @property
    def goal(self) -> str:
        """What ``value`` and ``bound`` are of."""
        return self.objective[0] if self.objective else "devices"


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
    """The whole plan. See the classes above for each table."""

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
    apps: tuple[AppEntry, ...]
    models: dict[str, ModelEntry]
    memory: tuple[MemoryEntry, ...]
    baselines: BaselineEntry
    price: PriceEntry | None = None  # None: some device has none
    rules: tuple[RuleEntry, ...] = ()
    tenants: tuple[TenantEntry, ...] = ()
    solver: SolverEntry
    batching: BatchingEntry
