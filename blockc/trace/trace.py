"""Configuration -> ``TracedModel``: capture few layers of each kind, normalise, cut, emit, and repeat the layers.

Invariant: running the blocks in order equals running the model; a request's values never depend on its neighbours in
a step, because no op outside attention and row selection may mix tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from blockc.ir import DTYPE_CODE
from blockc.trace.attention import UntraceableError
from blockc.trace.capture import Capture, build_meta_model, capture, computed_buffers
from blockc.trace.cut import Cuts, cut
from blockc.trace.emit import emit_block, kv_layers
from blockc.trace.independence import check_token_independence
from blockc.trace.loading import loading_of
from blockc.trace.model import TOKENS, Head, KvLayer, Source, TracedBlock, TracedModel
from blockc.trace.nodes import pool
from blockc.trace.normalize import normalize
from blockc.trace.rope import short_frequencies


def trace(
    config: Any,
    *,
    dtype: str,
    head: Head = TOKENS,
    max_model_len: int | None = None,
    every_layer: bool = False,
) -> TracedModel:
    """Trace a transformers configuration at ``dtype`` (``"float32"``, ``"bfloat16"``, ``"float16"``).

    ``max_model_len``: no request is longer, where that is known (see `rope.py`).
    ``every_layer`` captures all layers instead of the first and last of each kind (slow; the tests compare the two).
    Raises :class:`UntraceableError` with the reason.
    """
    model = build_meta_model(config, getattr(torch, dtype), head)
    loading = loading_of(model)
    with short_frequencies(model, max_model_len):
        captured = capture(model, head, every_layer=every_layer)
    normalize(captured.graph, head)
    check_token_independence(captured.graph)
    cuts = cut(captured, after_layers=head.reads_whole_texts and head.kind == "token_classification")
    # Encoders are `BertModel` to an embedding and its `bert` to scores: in blocks their parameters have one name.
    outside = f"{loading.prefix}." if head.reads_whole_texts else ""
    prelude = _emit_prelude(captured, cuts, outside)
    pieces = _emit_blocks(captured, cuts, outside)
    repeated = _repeat_layers(captured, pieces)
    if repeated is None:
        return trace(config, dtype=dtype, head=head, max_model_len=max_model_len, every_layer=True)
    blocks, layers = repeated
    if sum(map(attentions, blocks)) < len(captured.layers.kind_of):
        raise UntraceableError("attention that does not pass transformers' attention interface")
    _check_chain(blocks)
    sources = [source for block in (prelude, *blocks) if block is not None for source in block.sources.values()]
    buffers = frozenset(source.name for source in sources) & captured.buffers
    return TracedModel(
        architecture=type(model).__name__,
        head=head,
        dtype=DTYPE_CODE[dtype],
        prelude=prelude,
        blocks=blocks,
        kv_layers=layers,
        loading=loading,
        buffers=computed_buffers(captured.model, buffers),
        vocab_size=int(config.vocab_size),
        max_positions=getattr(config, "max_position_embeddings", None),
    )


def _emit_prelude(captured: Capture, cuts: Cuts, outside: str) -> TracedBlock | None:
    if not cuts.contexts:
        return None
    return emit_block(
        cuts.prelude,
        names=captured.names,
        strip=outside,
        inputs={captured.placeholder("positions"): "positions"},
        contexts=(),
        returns=cuts.contexts,
        select_rows=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A captured block with its caches. ``layer``: the layer that it belongs to (None: outside the layers)."""

    layer: int | None
    block: TracedBlock
    caches: tuple[KvLayer, ...]


def _emit_blocks(captured: Capture, cuts: Cuts, outside: str) -> list[_Piece]:
    """``outside``: what is left out of names that lie in no layer."""
    inputs = {captured.placeholder("tokens"): "tokens", captured.placeholder("positions"): "positions"}
    pieces: list[_Piece] = []
    for index, nodes in enumerate(cuts.blocks):
        layer = _layer_of(captured, {arg.name for node in nodes for arg in node.all_input_nodes})
        last = index == len(cuts.blocks) - 1
        block = emit_block(
            nodes,
            names=captured.names,
            strip=outside if layer is None else f"{captured.layers.path}.{layer}.",
            inputs=inputs | ({cuts.outputs[index - 1]: "x"} if index else {}),
            contexts=cuts.contexts,
            returns=(cuts.outputs[index],),
            select_rows=last and not any(node.target is pool for node in nodes),
        )
        pieces.append(_Piece(layer=layer, block=block, caches=tuple(kv_layers(nodes))))
    return pieces


def _layer_of(captured: Capture, placeholders: set[str]) -> int | None:
    prefix = f"{captured.layers.path}."
    names = [captured.names[name] for name in sorted(placeholders) if name in captured.names]
    layers = {int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else None for name in names}
    if len(layers) > 1:
        raise UntraceableError("a block that reaches over the border of a layer")
    return layers.pop() if layers else None


def _repeat_layers(
    captured: Capture, pieces: list[_Piece]
) -> tuple[tuple[TracedBlock, ...], tuple[KvLayer, ...]] | None:
    """Put a copy of its kind's blocks at every layer, with the layer's own parameter names.

    None if two captured layers of one kind turn out to be different.
    """
    plan = captured.layers
    order = [piece.layer for piece in pieces]
    in_layers = [layer for layer in order if layer is not None]
    first = order.index(in_layers[0]) if in_layers else 0
    end = first + len(in_layers)
    if not in_layers or order[first:end] != sorted(in_layers):
        raise UntraceableError("its layers do not follow one another")
    by_layer: dict[int, list[_Piece]] = {layer: [] for layer in plan.representatives}
    for piece in pieces[first:end]:
        assert piece.layer is not None
        by_layer[piece.layer].append(piece)
    for layer, own in by_layer.items():
        if own != _moved(by_layer[plan.first_of(plan.kind_of[layer])], plan.path, layer):
            return None
    repeated = [
        piece
        for layer, kind in enumerate(plan.kind_of)
        for piece in _moved(by_layer[plan.first_of(kind)], plan.path, layer)
    ]
    whole = [*pieces[:first], *repeated, *pieces[end:]]
    return tuple(piece.block for piece in whole), tuple(cache for piece in whole for cache in piece.caches)


def _moved(pieces: list[_Piece], path: str, layer: int) -> list[_Piece]:
    """The blocks of a layer as they are at another: only the names of what they bind change."""
    return [
        replace(piece, layer=layer, block=_renamed(piece.block, f"{path}.{piece.layer}.", f"{path}.{layer}."))
        for piece in pieces
    ]


def _renamed(block: TracedBlock, old: str, new: str) -> TracedBlock:
    def rename(name: str) -> str:
        return new + name.removeprefix(old) if name.startswith(old) else name

    return replace(
        block,
        sources={
            param: Source(name=rename(source.name), transform=source.transform)
            for param, source in block.sources.items()
        },
        sites={site: rename(module) for site, module in block.sites.items()},
    )


def attentions(block: TracedBlock) -> int:
    """How many attention ops a block has, of both kinds."""
    return sum(op.target in ("blockc.attention", "blockc.encode") for op in block.structure.ops)


def _check_chain(blocks: tuple[TracedBlock, ...]) -> None:
    """Every block but the first reads exactly the hidden state, and only the first reads tokens."""
    for index, block in enumerate(blocks):
        names = {name for name, _ in block.structure.inputs}
        expected = {"tokens", "positions"} if index == 0 else {"x"}
        if not names or not names <= expected or (index == 0 and "tokens" not in names):
            raise UntraceableError(f"a block that reads {', '.join(sorted(names)) or 'nothing'}")
        if index == len(blocks) - 1 and attentions(block):
            raise UntraceableError("attention after the last cut")
