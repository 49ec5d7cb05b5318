"""Tables of a plan that say what is computed: blocks, the chains that pass them, and the caches that chains have.

Everything is named by content digest or by index into the plan's own tables.
"""

from __future__ import annotations

from typing import Literal

from blockc.ir.identity import block_parts
from blockc.ir.tensor import QuantizedRef, TensorRef, cached_bytes
from blockc.plan.entry import Digest, Entry


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
    ``elsewhere``: in a part of a plan (`blockc.plan.Part`): some of the chains that prove it are not in this part.
    """

    kind: Literal["part", "join", "end", "elsewhere"]
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
        return 2 * self.layers * self.kv_heads * self.page_tokens * cached_bytes(self.dtype, self.head_dim)
