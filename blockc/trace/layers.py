"""Which layers of a model are alike, so that few of each kind are captured and the others are copies.

Alike: same modules, same scalars (the layer index aside), same parameter shapes. Checked against full capture in
the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """``path`` names the list of layers; ``kind_of[i]`` is layer i's kind, ``representatives`` are captured.

    The first layer of each kind stands for all of it. The last one is captured too: if it turns out to be another
    (its place enters its computation), the kind is none.
    """

    path: str
    representatives: tuple[int, ...]
    kind_of: tuple[int, ...]

    def first_of(self, kind: int) -> int:
        """The layer that stands for a kind."""
        return self.kind_of.index(kind)

    def every_layer(self) -> LayerPlan:
        """The plan in which each layer is a kind of its own."""
        every = tuple(range(len(self.kind_of)))
        return LayerPlan(path=self.path, representatives=every, kind_of=every)


def find_layers(model: nn.Module) -> LayerPlan | None:
    """The longest module list is the stack of layers. None if there is no such list."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return None
    path, layers = max(lists, key=lambda item: len(item[1]))
    signatures = [_signature(layer) for layer in layers]
    kinds: dict[Any, int] = {}
    kind_of = tuple(kinds.setdefault(signature, len(kinds)) for signature in signatures)
    ends = {kind_of.index(kind) for kind in kinds.values()}
    ends |= {len(kind_of) - 1 - kind_of[::-1].index(kind) for kind in kinds.values()}
    return LayerPlan(path=path, representatives=tuple(sorted(ends)), kind_of=kind_of)


def keep_representatives(model: nn.Module, plan: LayerPlan) -> None:
    """Make all layers but the representatives, in place, pass on what they are given.

    The stack keeps its length, because models look up settings of a layer by its place.
    """
    layers = model.get_submodule(plan.path)
    assert isinstance(layers, nn.ModuleList)
    results: dict[int, Any] = {}
    for index, kind in enumerate(plan.kind_of):
        if index in plan.representatives:
            layers[index].register_forward_hook(lambda _, __, result, kind=kind: results.update({kind: result}))
        else:
            layers[index] = _PassOn(layers[index], kind, results)


class _PassOn(nn.Module):
    """In the place of a layer: same attributes, no parameters, no computation.

    ``results[kind]``: what a layer of the kind that did run has returned, for the form of this one's result.
    """

    def __init__(self, layer: nn.Module, kind: int, results: dict[int, Any]) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # not a submodule: its parameters are no part of the graph
        self._kind, self._results = kind, results

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states, which come first by place or by name."""
        hidden = args[0] if args else kwargs["hidden_states"]
        like = self._results[self._kind]
        return type(like)((hidden, *like[1:])) if isinstance(like, tuple | list) else hidden


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
