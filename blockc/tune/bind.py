"""Traced blocks and where their tensors come from -> the path of a model.

In: a traced model, and for each of its blocks the tensors: read from a checkpoint, or assumed by name. Out: a
``ModelPath``. Invariant: nothing here knows which of the two it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blockc.graph import Block, KvLayerShape, ModelPath
from blockc.ir import TensorRef
from blockc.trace import TracedBlock, TracedModel

TensorsOf = Callable[[TracedBlock], Mapping[str, TensorRef]]  # parameters of the block's structure -> tensors


def bind(traced: TracedModel, tensors_of: TensorsOf, *, max_model_len: int, kv_dtype: str) -> ModelPath:
    """Bind every block. ``tensors_of`` is asked for the prelude first, then for the blocks in order."""
    prelude = _bound(traced.prelude, tensors_of(traced.prelude), None, max_model_len) if traced.prelude else None
    counts = [block.structure.attention_count for block in traced.blocks]
    # Fine-tunes for embeddings are trained on the model without its head for tokens, and name its modules from there.
    inner = traced.loading.prefix + "." if traced.head.kind == "embedding" and traced.head.causal else ""
    return ModelPath(
        blocks=tuple(_bound(block, tensors_of(block), prelude, max_model_len) for block in traced.blocks),
        prelude=prelude,
        kv_layers=tuple(
            KvLayerShape(
                kv_heads=layer.kv_heads,
                head_dim=layer.head_dim,
                window=_effective_window(layer.window, max_model_len),
                dtype=kv_dtype,
            )
            for layer in traced.kv_layers
        ),
        first_kv_layer=tuple(sum(counts[:index]) for index in range(len(counts))),
        sites=tuple(
            {module.removeprefix(inner): site for site, module in block.sites.items()} for block in traced.blocks
        ),
        dtype=traced.dtype,
        vocab_size=traced.vocab_size,
        max_model_len=max_model_len,
        prefixes=tuple(block.layer_prefix.removeprefix(inner) for block in traced.blocks),
        parameters=tuple(
            {source.name.removeprefix(inner): name for name, source in block.sources.items()} for block in traced.blocks
        ),
        transposed=frozenset(
            source.name.removeprefix(inner)
            for block in traced.blocks
            for source in block.sources.values()
            if source.transform == "transpose"
        ),
        tied=traced.loading.tied,
    )


def _bound(block: TracedBlock, tensors: Mapping[str, TensorRef], prelude: Block | None, max_model_len: int) -> Block:
    return Block(
        structure=block.structure,
        binds={
            name: _effective_window(value, max_model_len) if name.startswith("window") else value  # type: ignore[arg-type]
            for name, value in block.binds.items()
        },
        tensors=tensors,
        prelude=prelude.digest if prelude is not None and block.contexts else None,
        contexts=block.contexts,
    )


def _effective_window(window: int | None, max_model_len: int) -> int | None:
    """A window that no sequence can outgrow is full attention."""
    return None if window is None or window >= max_model_len else window
