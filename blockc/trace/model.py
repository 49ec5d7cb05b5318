"""What tracing yields: blocks that say where their tensors come from, without the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from blockc.ir import Structure
from blockc.trace.loading import Loading

Transform = Literal["none", "transpose"]
Pooling = Literal["first", "last", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a model yields: logits of the next token, a vector for a text, or scores of classes, for it or each token.

    ``pooling``: how an embedding is made of the tokens' hidden states; ``normalize``: scaled to length 1. ``causal``:
    scores or an embedding of a model that reads from left to right, at the text's last token.
    """

    kind: Literal["tokens", "embedding", "classification", "token_classification"] = "tokens"
    pooling: Pooling = "mean"
    normalize: bool = False
    causal: bool = False

    @property
    def reads_whole_texts(self) -> bool:
        """Whether tokens depend on those that follow them."""
        return self.kind != "tokens" and not self.causal

    @property
    def has_classes(self) -> bool:
        """Whether it yields scores, of a text or of its tokens."""
        return self.kind in ("classification", "token_classification")


TOKENS = Head()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a block's parameter comes from: a parameter of the model by its full name, and what is done to it.

    ``transpose``: the model keeps it ``[in, out]`` (GPT-2's Conv1D); blocks keep linears ``[out, in]``.
    """

    name: str
    transform: Transform = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedBlock:
    """One occurrence of a block: its structure, scalars, parameter sources, sites.

    ``contexts``: for each context input, which output of the prelude. ``sites``: site name -> module path as PEFT
    writes it in its tensor names.
    """

    structure: Structure
    binds: Mapping[str, float | int | None]
    sources: Mapping[str, Source]
    contexts: tuple[int, ...]
    sites: Mapping[str, str]

    @property
    def layer_prefix(self) -> str:
        """What the model's parameter names have in front of the block's, such as ``model.layers.3.``."""
        for name, source in self.sources.items():
            if source.name.endswith(name):
                return source.name.removesuffix(name)
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayer:
    """The cache of one attention op: heads, head size, window in tokens (None: full)."""

    kv_heads: int
    head_dim: int
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedModel:
    """A whole model as a sequence of blocks from token ids to logits.

    ``buffers`` are the tensors (torch) that a model computes from its configuration, such as rotary frequencies, by
    full name. ``loading``: by which rules a checkpoint's tensors become parameters.
    """

    architecture: str
    head: Head
    dtype: str
    prelude: TracedBlock | None
    blocks: tuple[TracedBlock, ...]
    kv_layers: tuple[KvLayer, ...]
    loading: Loading
    buffers: Mapping[str, Any]
    vocab_size: int
    max_positions: int | None
