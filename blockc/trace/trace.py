"""Configuration -> ``TracedModel``: capture one layer of each kind, normalise, cut, emit, and repeat the layers.

Invariant: running the blocks in order equals running the model; a request's values never depend on its neighbours in
a step, because no op outside attention and row selection may mix tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from blockc.ir import DTYPE_CODE, format_structure
from blockc.trace.attention import UntraceableError
from blockc.trace.capture import Capture, build_meta_model, capture, computed_buffers
from blockc.trace.cut import Cuts, cut
from blockc.trace.emit import emit_block, kv_layers
from blockc.trace.independence import check_token_independence
from blockc.trace.loading import loading_of
from blockc.trace.model import KvLayer, Source, TracedBlock, TracedModel
from blockc.trace.normalize import normalize


def trace(config: Any, *, dtype: str, every_layer: bool = False) -> TracedModel:
    """Trace a transformers configuration at ``dtype`` (``"float32"``, ``"bfloat16"``, ``"float16"``).

    ``every_layer`` captures all layers instead of one of each kind (slow; the tests compare the two).
    Raises :class:`UntraceableError` with the reason.
    """
    model = build_meta_model(config, getattr(torch, dtype))
    loading = loading_of(model)
    captured = capture(model, every_layer=every_layer)
    normalize(captured.graph)
    check_token_independence(captured.graph)
    cuts = cut(captured)
    prelude = _emit_prelude(captured, cuts)
    pieces = _emit_blocks(captured, cuts)
    blocks, layers = _repeat_layers(captured, pieces)
    if len(layers) < len(captured.layers.kind_of):
        raise UntraceableError("attention that does not pass transformers' attention interface")
    _check_chain(blocks)
    buffers = frozenset(source.name for source in (prelude.sources if prelude else {}).values())
    return TracedModel(
        architecture=type(model).__name__,
        dtype=DTYPE_CODE[dtype],
        prelude=prelude,
        blocks=blocks,
        kv_layers=layers,
        loading=loading,
        buffers=computed_buffers(captured.model, buffers),
        vocab_size=int(config.vocab_size),
        max_positions=getattr(config, "max_position_embeddings", None),
    )


def _emit_prelude(captured: Capture, cuts: Cuts) -> TracedBlock | None:
    if not cuts.contexts:
        return None
    return emit_block(
        cuts.prelude,
        names=captured.names,
        strip="",
        inputs={_placeholder(captured, "positions"): "positions"},
        contexts=(),
        returns=cuts.contexts,
        select_rows=False,
    )


def _emit_blocks(captured: Capture, cuts: Cuts) -> list[tuple[int | None, TracedBlock, list[KvLayer]]]:
    """Each block with the kind of layer that it belongs to (None: outside the layers)."""
    inputs = {_placeholder(captured, "tokens"): "tokens", _placeholder(captured, "positions"): "positions"}
    pieces: list[tuple[int | None, TracedBlock, list[KvLayer]]] = []
    for index, nodes in enumerate(cuts.blocks):
        kind = _layer_kind(captured, {arg.name for node in nodes for arg in node.all_input_nodes})
        last = index == len(cuts.blocks) - 1
        block = emit_block(
            nodes,
            names=captured.names,
            strip="" if kind is None else f"{captured.layers.path}.{kind}.",
            inputs=inputs | ({cuts.outputs[index - 1]: "x"} if index else {}),
            contexts=cuts.contexts,
            returns=(cuts.outputs[index],),
            select_rows=last,
        )
        pieces.append((kind, block, kv_layers(nodes)))
    return pieces


def _layer_kind(captured: Capture, placeholders: set[str]) -> int | None:
    prefix = f"{captured.layers.path}."
    names = [captured.names[name] for name in sorted(placeholders) if name in captured.names]
    kinds = {int(name.removeprefix(prefix).split(".")[0]) if name.startswith(prefix) else None for name in names}
    if len(kinds) > 1:
        raise UntraceableError("a block that reaches over the border of a layer")
    return kinds.pop() if kinds else None


def _repeat_layers(
    captured: Capture, pieces: list[tuple[int | None, TracedBlock, list[KvLayer]]]
) -> tuple[tuple[TracedBlock, ...], tuple[KvLayer, ...]]:
    """Put a copy of its kind's blocks at every layer, with the layer's own parameter names."""
    order = [kind for kind, _, _ in pieces]
    in_layers = [kind for kind in order if kind is not None]
    first = order.index(in_layers[0]) if in_layers else 0
    stack = order[first : first + len(in_layers)]
    if not in_layers or stack != sorted(in_layers):
        raise UntraceableError("its layers do not follow one another")
    blocks: list[TracedBlock] = []
    layers: list[KvLayer] = []
    for _, block, caches in pieces[:first]:
        blocks.append(block)
        layers += caches
    for index, kind in enumerate(captured.layers.kind_of):
        for own, block, caches in pieces:
            if own == kind:
                blocks.append(_renamed(block, captured.layers.path, kind, index))
                layers += caches
    for _, block, caches in pieces[first + len(in_layers) :]:
        blocks.append(block)
        layers += caches
    return tuple(blocks), tuple(layers)


def _renamed(block: TracedBlock, path: str, kind: int, index: int) -> TracedBlock:
    old, new = f"{path}.{kind}.", f"{path}.{index}."

    def rename(name: str) -> str:
        return new + name.removeprefix(old)

    return replace(
        block,
        sources={
            param: Source(name=rename(source.name), transform=source.transform)
            for param, source in block.sources.items()
        },
        sites={site: rename(module) for site, module in block.sites.items()},
    )


def _check_chain(blocks: tuple[TracedBlock, ...]) -> None:
    """Every block but the first reads exactly the hidden state, and only the first reads tokens."""
    for index, block in enumerate(blocks):
        names = {name for name, _ in block.structure.inputs}
        expected = {"tokens", "positions"} if index == 0 else {"x"}
        if not names or not names <= expected or (index == 0 and "tokens" not in names):
            raise UntraceableError(f"a block that reads {', '.join(sorted(names)) or 'nothing'}")
        if index == len(blocks) - 1 and "blockc.attention" in format_structure(block.structure):
            raise UntraceableError("attention after the last cut")


def _placeholder(captured: Capture, name: str) -> torch.fx.Node:
    found: torch.fx.Node = next(node for node in captured.graph.nodes if node.op == "placeholder" and node.name == name)
    return found
