"""``Block`` and ``Chain``: models as sequences of content-addressed blocks.

Two blocks are the same exactly if their digests are. A chain is a model version; its digest identifies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from functools import cached_property

from blockc.ir import (
    Place,
    QuantizedRef,
    Side,
    Structure,
    TensorRef,
    block_parts,
    json_digest,
    side_digest,
    sites_of,
    structure_digest,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A structure with scalars and tensors bound to it.

    ``prelude`` is the digest of the block whose outputs are its context inputs, and ``contexts`` says which of them,
    in order. Both are part of its identity: the same weights under other rotary frequencies are another block.
    """

    structure: Structure
    binds: Mapping[str, float | int | None]
    tensors: Mapping[str, TensorRef]
    prelude: str | None
    contexts: tuple[int, ...]

    @cached_property
    def structure_digest(self) -> str:
        """Digest of the structure's canonical text."""
        return structure_digest(self.structure)

    @cached_property
    def digest(self) -> str:
        """Identifies the block: equal digests, equal functions."""
        scalars = {name: value.hex() if isinstance(value, float) else value for name, value in self.binds.items()}
        return json_digest(
            "block v1",
            {
                "structure": self.structure_digest,
                "binds": scalars,
                "tensors": {name: tensor.digest for name, tensor in self.tensors.items()},
                "prelude": self.prelude,
                "contexts": self.contexts,
            },
        )

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """Its sites by name."""
        return sites_of(self.structure)

    @cached_property
    def parts(self) -> dict[str, str]:
        """What its identity consists of, by name (see `blockc.ir.identity`)."""
        return block_parts(
            structure=self.structure_digest,
            binds=self.binds,
            tensors=self.tensors,
            prelude=self.prelude,
            contexts=self.contexts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayerShape:
    """The cache of one attention op of a chain. ``window`` in tokens; None: full attention."""

    kv_heads: int
    head_dim: int
    window: int | None
    dtype: str  # safetensors spelling


@dataclass(frozen=True, kw_only=True)
class ModelPath:
    """A model without fine-tunes: its blocks in order, from tokens to logits.

    ``sites[i]`` maps module paths (PEFT's) of occurrence i to site names. ``first_kv_layer[i]``: KV layers before it.
    ``prefixes[i]`` stands before the parameter names of occurrence i in its model (``model.layers.3.``); empty where
    they are not known. ``parameters[i]`` maps full parameter names to those in the structure of occurrence i;
    ``transposed``: those that files hold as ``[in, out]``; ``tied``: parameters that the model keeps as one with
    another. ``integers``: what its files hold as integers, by the digest of the matrix that those stand for. Names are
    for reading files and for people, and no part of the digest.
    """

    blocks: tuple[Block, ...]
    prelude: Block | None
    kv_layers: tuple[KvLayerShape, ...]
    first_kv_layer: tuple[int, ...]
    sites: tuple[Mapping[str, str], ...]
    dtype: str
    vocab_size: int
    max_model_len: int
    prefixes: tuple[str, ...] = ()
    parameters: tuple[Mapping[str, str], ...] = ()
    transposed: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    integers: Mapping[str, QuantizedRef] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Identifies the sequence of blocks and the layout of its cache."""
        return json_digest(
            "path v1",
            {
                "blocks": [block.digest for block in self.blocks],
                "kv": [[kv.kv_heads, kv.head_dim, kv.window, kv.dtype] for kv in self.kv_layers],
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """The vector that a model yields for a text. ``is_normalized``: of length 1, and to be again when it is cut.

    ``widths``: to how many values it may be cut, since it was trained for that (Matryoshka); None: to any.
    """

    is_normalized: bool
    widths: tuple[int, ...] | None = ()


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A model version: a path, the sides on it, and the assets that belong to it.

    ``assets`` maps file names to digests of zoo blobs. ``virtual_tokens`` stand before every prompt: ids whose
    embedding or keys and values its sides give. ``labels``: names of classes, of a model that yields scores of them
    in place of a next token, or of ``each_token`` that it reads; ``embedding``: of one that yields a vector. Two models
    of equal digest are one chain.
    """

    path: ModelPath
    sides: tuple[Side, ...]  # sorted by site
    assets: Mapping[str, str]
    stop_token_ids: tuple[int, ...]
    virtual_tokens: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    embedding: Embedding | None = None
    each_token: bool = False

    @cached_property
    def sides_at(self) -> Mapping[int, tuple[Side, ...]]:
        """The sides of each occurrence that has any, in order."""
        found: dict[int, tuple[Side, ...]] = {}
        for side in self.sides:
            found[side.site.occurrence] = (*found.get(side.site.occurrence, ()), side)
        return found

    @cached_property
    def side_digests(self) -> tuple[str, ...]:
        """One digest per side, in order."""
        return tuple(side_digest(side) for side in self.sides)

    @cached_property
    def digest(self) -> str:
        """Identifies the model version."""
        return json_digest(
            "chain v1",
            {
                "path": self.path.digest,
                "sides": self.side_digests,
                "assets": dict(self.assets),
                "stop": self.stop_token_ids,
                "max_model_len": self.path.max_model_len,
                "virtual": self.virtual_tokens,
                **({"labels": self.labels} if self.labels else {}),
                **({"each_token": True} if self.each_token else {}),
                **({"embedding": astuple(self.embedding)} if self.embedding else {}),
            },
        )
