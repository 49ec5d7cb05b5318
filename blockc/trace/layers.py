"""Which layers of a model are alike, so that one of each kind is captured and the others are copies.

Alike: same modules, same scalars (the layer index aside), same parameter shapes. Checked against full capture in
the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """``path`` names the list of layers; ``kind_of[i]`` is the index of layer i's kind in ``representatives``."""

    path: str
    representatives: tuple[int, ...]
    kind_of: tuple[int, ...]


def find_layers(model: nn.Module) -> LayerPlan | None:
    """The longest module list is the stack of layers. None if there is no such list."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return None
    path, layers = max(lists, key=lambda item: len(item[1]))
    signatures = [_signature(layer) for layer in layers]
    representatives: list[int] = []
    kinds: dict[Any, int] = {}
    for index, signature in enumerate(signatures):
        if signature not in kinds:
            kinds[signature] = len(representatives)
            representatives.append(index)
    return LayerPlan(
        path=path,
        representatives=tuple(representatives),
        kind_of=tuple(kinds[signature] for signature in signatures),
    )


def keep_representatives(model: nn.Module, plan: LayerPlan) -> None:
    """Shorten the model's stack, in place, to one layer of each kind. Layers keep their own index."""
    parent_path, _, name = plan.path.rpartition(".")
    parent = model.get_submodule(parent_path)
    layers = model.get_submodule(plan.path)
    assert isinstance(layers, nn.ModuleList)
    setattr(parent, name, nn.ModuleList([layers[index] for index in plan.representatives]))


def _signature(module: nn.Module) -> Any:
    scalars = tuple(
        sorted(
            (key, repr(value))
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | type(None)) and key != "layer_idx"
        )
    )
    tensors = tuple((name, tuple(tensor.shape)) for name, tensor in module.named_parameters(recurse=False))
    buffers = tuple((name, tuple(tensor.shape)) for name, tensor in module.named_buffers(recurse=False))
    children = tuple((name, _signature(child)) for name, child in module.named_children())
    return (type(module).__qualname__, scalars, tensors, buffers, children)
