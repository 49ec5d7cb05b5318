"""The oracle of models that are lossy on purpose: their own chain, evaluated block by block in float32.

Transformers cannot run a change that is kept as signs or integers. The evaluator can, from the plan and the zoo alone;
it is itself checked against transformers on models that lose nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockc.evaluate import logits
from blockc.graph import Block, Chain, KvLayerShape, ModelPath
from blockc.ir import parse_structure
from blockc.plan import ExecutionPlan, read_manifest
from blockc.zoo import Zoo


class EvaluatedReference:
    """One chain of a plan. One request at a time."""

    def __init__(self, plan: ExecutionPlan, zoo: Zoo, chain: int) -> None:
        self._chain, self._zoo = chain_of(plan, zoo, chain), zoo

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Float32 logits ``[len(tokens), vocab]``."""
        return logits(self._chain, self._zoo, [tokens])[0]


def is_lossy(plan: ExecutionPlan, model: str | None) -> bool:
    """Whether a model, or any that it derives from, is served within a budget or bound instead of exactly."""
    while model is not None:
        entry = plan.models[model]
        if entry.quantization is not None or (entry.sharing is not None and entry.sharing.verdict != "exact"):
            return True
        model = entry.parent
    return False


def chain_of(plan: ExecutionPlan, zoo: Zoo, index: int) -> Chain:
    """A chain of a plan as the compiler has it, without names. Raises `DiagnosticError`."""
    entry = plan.chains[index]
    path = plan.paths[entry.path]
    blocks = {digest: _block(plan, digest) for digest in {*path.blocks, *_preludes(plan, path.blocks)}}
    preludes = _preludes(plan, path.blocks)
    counts = [blocks[digest].structure.attention_count for digest in path.blocks]
    manifest = None if entry.sides is None else read_manifest(entry.sides, zoo.blob(entry.sides))
    return Chain(
        path=ModelPath(
            blocks=tuple(blocks[digest] for digest in path.blocks),
            prelude=blocks[preludes[0]] if preludes else None,
            kv_layers=tuple(KvLayerShape(**kv.model_dump()) for kv in path.kv_layers),
            first_kv_layer=tuple(sum(counts[:place]) for place in range(len(counts))),
            sites=({},) * len(counts),
            dtype=path.dtype,
            vocab_size=entry.vocab_size,
            max_model_len=entry.max_model_len,
        ),
        sides=() if manifest is None else tuple(side.side for side in manifest.sides),
        assets=entry.assets,
        stop_token_ids=entry.stop_token_ids,
        virtual_tokens=entry.virtual_tokens,
        labels=entry.labels,
        each_token=entry.each_token,
    )


def _preludes(plan: ExecutionPlan, blocks: Sequence[str]) -> list[str]:
    return sorted({prelude for block in blocks if (prelude := plan.blocks[block].prelude) is not None})


def _block(plan: ExecutionPlan, digest: str) -> Block:
    entry = plan.blocks[digest]
    return Block(
        structure=parse_structure(plan.structures[entry.structure]),
        binds=entry.binds,
        tensors=entry.tensors,
        prelude=entry.prelude,
        contexts=entry.contexts,
    )
