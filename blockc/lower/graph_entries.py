"""The tables that say what is computed: blocks, the chains that pass them, and their caches.

In: the unified graph, the deployment. Out: entries of a plan, and in the zoo one manifest of sides for each chain that
has any.
"""

from __future__ import annotations

from blockc.graph import Block, Chain, Embedding, ModelPath
from blockc.ir import canonical_json, json_digest
from blockc.ir.infer import value_types
from blockc.plan import (
    BlockEntry,
    ChainEntry,
    ChainKvEntry,
    CutEntry,
    EmbeddingEntry,
    KvGroupEntry,
    KvLayerEntry,
    PathEntry,
    SegmentEntry,
    SideEntry,
    SideManifest,
)
from blockc.spec.deployment import Deployment
from blockc.unify import UnifiedGraph
from blockc.zoo import Zoo


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


def chain_entry(graph: UnifiedGraph, index: int, bank: int | None, zoo: Zoo | None) -> ChainEntry:
    """``bank``: whose slots its sides take; ``zoo`` None: its sides are only assumed."""
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


def segment_entries(graph: UnifiedGraph) -> tuple[SegmentEntry, ...]:
    """Segments with the chains that pass them, and why each begins where it does."""
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


def block_entry(block: Block) -> BlockEntry:
    """A structure and what is bound to it."""
    return BlockEntry(
        structure=block.structure_digest,
        tensors=dict(block.tensors),
        binds=dict(block.binds),
        prelude=block.prelude,
        contexts=block.contexts,
    )


def path_entry(path: ModelPath) -> PathEntry:
    """The blocks of a path, and its cache layer by layer."""
    return PathEntry(
        blocks=tuple(block.digest for block in path.blocks),
        kv_layers=tuple(
            KvLayerEntry(kv_heads=kv.kv_heads, head_dim=kv.head_dim, window=kv.window, dtype=kv.dtype)
            for kv in path.kv_layers
        ),
        dtype=path.dtype,
        prefixes=path.prefixes,
    )
