"""``ExecutionPlan``: the file between the compiler and the runtime.

Canonical JSON: the same spec and weights give the same bytes. Everything is named by content digest or by index
into the plan's own tables; names of tenants and apps appear in ``apps`` only and never key a cache.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from blockc.fine_tunes import FULL
from blockc.ir.codecs import CODECS
from blockc.ir.identity import block_parts
from blockc.ir.side import Scalar, Side, Site, term
from blockc.ir.tensor import QuantizedRef, TensorRef

FORMAT_VERSION = 1

Digest = str


class _Entry(BaseModel):
    """Frozen, and strict about unknown fields: a plan is written by the compiler only."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BlockEntry(_Entry):
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


class KvLayerEntry(_Entry):
    """The shape of one attention layer's cache."""

    kv_heads: int
    head_dim: int
    window: int | None  # tokens; None: full attention
    dtype: str  # safetensors spelling


class PathEntry(_Entry):
    """A sequence of occurrences of blocks, from token ids to logits, shared by all chains that pass it.

    ``prefixes``: what stands before the parameter names of each occurrence in the model that it came from. Empty where
    no names are known; nothing that serves reads it.
    """

    blocks: tuple[Digest, ...]
    kv_layers: tuple[KvLayerEntry, ...]  # one per attention op, in order
    dtype: str
    prefixes: tuple[str, ...] = ()


class ChainKvEntry(_Entry):
    """A chain's share of one KV group: the domain of the group's last layer (see ``KvDomain`` in the glossary)."""

    group: int
    domain: Digest


class ChainEntry(_Entry):
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


class CutEntry(_Entry):
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


class SegmentEntry(_Entry):
    """A maximal run of occurrences that the same chains pass: launched at once for the rows of all of them."""

    path: Digest  # a path that contains it; all chains through it have the same blocks there
    first: int  # occurrence index in that path
    count: int
    first_kv_layer: int
    chains: tuple[int, ...]
    cut: CutEntry


class KvGroupEntry(_Entry):
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
        from blockc.ir.tensor import DTYPE_BYTES

        return 2 * self.layers * self.kv_heads * self.head_dim * self.page_tokens * DTYPE_BYTES[self.dtype]


class DeviceEntry(_Entry):
    """A device. ``address`` is node/device."""

    address: str
    node: str
    kind: str
    memory_bytes: int
    reserve_bytes: int


class LinkEntry(_Entry):
    """A link between two devices (indices into ``devices``)."""

    source: int
    target: int
    bytes_per_s: int
    latency_s: float


class InstanceEntry(_Entry):
    """A run of segments on devices, with the pages it owns of each KV group.

    ``side_slots``: so many fine-tunes of a bank have their sides in memory at once; a bank that is not named has a slot
    for each of its own.
    """

    segments: tuple[int, ...]
    devices: tuple[int, ...]
    chains: tuple[int, ...]
    max_rows: int
    kv_pages: dict[int, int]  # KV group -> pages
    side_slots: dict[int, int] = {}  # bank -> slots


class EdgeEntry(_Entry):
    """Hidden states ``[T, hidden]`` going from one instance to another."""

    source: int
    target: int


class RouteEntry(_Entry):
    """How a chain may travel: alternatives, each a sequence of instances."""

    chain: int
    alternatives: tuple[tuple[int, ...], ...]


class MemoryEntry(_Entry):
    """Bytes on one device, by the same `Layout` that the runtime allocates by."""

    device: int
    weights_bytes: int
    sides_bytes: int
    kv_bytes: int
    workspace_bytes: int
    reserve_bytes: int
    capacity_bytes: int

    @property
    def used_bytes(self) -> int:
        """All parts together, the reserve included."""
        return self.weights_bytes + self.sides_bytes + self.kv_bytes + self.workspace_bytes + self.reserve_bytes


class BaselineEntry(_Entry):
    """Weight bytes: every model on its own (PM), base shared among adapters only (PS), and ours."""

    pm_bytes: int
    ps_bytes: int
    ours_bytes: int


class TenantEntry(_Entry):
    """Weight bytes of one tenant.

    ``pm_bytes``: its apps' models, each by itself. ``private_bytes``: tensors that no other tenant takes;
    ``shared_bytes``: those that others take too, in full; ``fair_bytes``: every tensor divided among its takers, so
    that all tenants' together are the plan's ``ours_bytes``.
    """

    tenant: str
    pm_bytes: int
    private_bytes: int
    shared_bytes: int
    fair_bytes: int


class AppEntry(_Entry):
    """What clients call as ``tenant/app``. ``isolation_group`` keys caches together with content.

    ``ttft_s``: the time to first token that is aimed at; None: none in particular.
    """

    tenant: str
    app: str
    model: str
    chain: int
    isolation_group: Digest
    weight: float
    ttft_s: float | None = None

    @property
    def address(self) -> str:
        """What clients send as `model`."""
        return f"{self.tenant}/{self.app}"


class AgreementEntry(_Entry):
    """How far a model is from its original on a probe: see `blockc.evaluate.Agreement`."""

    probe: str
    probe_digest: Digest
    tokens: int
    kl_mean: float
    kl_max: float
    top1: float
    perplexity: float
    original_perplexity: float


class SharingEntry(_Entry):
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


class QuantizationEntry(_Entry):
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


class MergeEntry(_Entry):
    """Why a fine-tune has private weights in place of sides: see `blockc.merge.Merge`."""

    gain: float
    private_bytes: int
    rounding: float


class ModelEntry(_Entry):
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


class SolverEntry(_Entry):
    """How good the placement is and how it was found."""

    objective: tuple[str, ...]
    value: float
    bound: float
    gap: float
    status: str
    seed: int
    solver: str


class BatchingEntry(_Entry):
    """Limits of one step."""

    max_batched_tokens: int
    max_rows: int


class ExecutionPlan(_Entry):
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
    tenants: tuple[TenantEntry, ...] = ()
    solver: SolverEntry
    batching: BatchingEntry


class SideManifest(BaseModel):
    """All sides of one fine-tune (or stack), kept in the zoo by digest so that plans stay small."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    sides: tuple[SideEntry, ...]


class TermEntry(_Entry):
    """One term of a side (see `blockc.ir.codecs`). Floats among ``scalars`` are hexadecimal text, exact."""

    codec: str
    tensors: dict[str, TensorRef]
    scalars: dict[str, int | str]


class SideEntry(_Entry):
    """What one site of one occurrence gets."""

    occurrence: int
    site: str
    terms: tuple[TermEntry, ...]

    @classmethod
    def of(cls, side: Side) -> SideEntry:
        """The entry of a side."""
        terms = (
            TermEntry(
                codec=term.codec,
                tensors=dict(term.tensors),
                scalars={name: value.hex() if isinstance(value, float) else value for name, value in term.scalars},
            )
            for term in side.terms
        )
        return cls(occurrence=side.site.occurrence, site=side.site.name, terms=tuple(terms))

    @property
    def side(self) -> Side:
        """The side that this is the entry of. Raises ValueError where a float is none."""
        return Side(
            site=Site(occurrence=self.occurrence, name=self.site),
            terms=tuple(
                term(entry.codec, entry.tensors, **{name: _scalar(entry, name) for name in entry.scalars})
                for entry in self.terms
            ),
        )


def _scalar(entry: TermEntry, name: str) -> Scalar:
    """A scalar of the type that its codec gives it; of an unknown codec as it is written."""
    value = entry.scalars[name]
    codec = CODECS.get(entry.codec)
    return float.fromhex(str(value)) if codec is not None and codec.scalars.get(name) is float else value


class TensorEvidenceEntry(_Entry):
    """One tensor of a full fine-tune that is kept beside a shared one: see `blockc.share.TensorEvidence`."""

    occurrence: int
    parameter: str
    codec: str
    lost: float
    error: float
    nbytes: int
    own_bytes: int


class EvidenceManifest(_Entry):
    """What each tensor of one fine-tune lost, kept in the zoo by digest so that plans stay small."""

    format_version: Literal[1] = 1
    tensors: tuple[TensorEvidenceEntry, ...]


SideManifest.model_rebuild()
