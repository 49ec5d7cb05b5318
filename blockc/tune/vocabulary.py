"""Tables and heads of another height: fine-tunes that added tokens to the vocabulary, or dropped some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from blockc.graph import Block, ModelPath
from blockc.ir import Place, Structure, TensorRef, ValueType, sites_of, verify_structure


def resized(path: ModelPath, tensors: Mapping[str, TensorRef]) -> ModelPath:
    """The path with other tensors by full parameter name.

    A table of token ids or a head may have another number of rows; the vocabulary of the path is then what its head
    yields. Raises ValueError for any other difference in type.
    """
    if not tensors:
        return path
    blocks, vocab_size = list(path.blocks), path.vocab_size
    for occurrence, parameters in enumerate(path.parameters):
        own = {parameters[name]: ref for name, ref in tensors.items() if name in parameters}
        if own:
            blocks[occurrence], height = _rebound(blocks[occurrence], own)
            vocab_size = vocab_size if height is None else height
    return replace(path, blocks=tuple(blocks), vocab_size=vocab_size)


def may_resize(structure: Structure, param: str) -> bool:
    """Whether a parameter is a table of token ids, a head or a head's bias: what may have another number of rows."""
    return any(
        (place.kind == "embed" and place.param == param) or (is_head(place) and param in (place.param, place.bias))
        for place in sites_of(structure).values()
    )


def is_head(place: Place) -> bool:
    """Whether a site is a linear that yields logits."""
    return place.kind == "linear" and place.after_selection


def _rebound(block: Block, own: Mapping[str, TensorRef]) -> tuple[Block, int | None]:
    types, height = dict(block.structure.params), None
    for name, ref in own.items():
        old = types[name]
        if ref.dtype != old.dtype or ref.shape[1:] != old.shape[1:] or (
            ref.shape != old.shape and not may_resize(block.structure, name)
        ):  # fmt: skip
            raise ValueError(f"{name} is another type of tensor")
        if ref.shape != old.shape:
            types[name] = ValueType(dtype=ref.dtype, shape=ref.shape)
            heads = [place for place in sites_of(block.structure).values() if is_head(place) and place.param == name]
            height = ref.shape[0] if heads else height
    structure = replace(block.structure, params=tuple((name, types[name]) for name, _ in block.structure.params))
    verify_structure(structure)
    return replace(block, structure=structure, tensors={**block.tensors, **own}), height
