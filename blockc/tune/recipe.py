"""How a checkpoint's tensors become a model's parameters: renamed, fused and split by transformers' own transforms.

In: names and shapes of a checkpoint, the rules of an architecture. Out: a recipe for each parameter that the
checkpoint gives. Invariant: a recipe makes what ``from_pretrained`` loads, and every tensor of the checkpoint is in
one recipe, tied, dropped by transformers itself, or reported. Nothing is read: recipes are tried on the meta device.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from blockc.trace import Loading

_LONGEST_NAME = 500  # longer ones are no names of a model's, and transformers' patterns would be slow on them
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one parameter is made.

    ``inputs``: names in the checkpoint by the pattern that each matched, in order. Without a ``converter`` there is
    one input, taken as it is. ``key``: the parameter under which transformers collects the inputs; a converter that
    splits makes several.
    """

    key: str
    inputs: Mapping[str, tuple[str, ...]]
    converter: WeightConverter | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs."""
        return tuple(name for names in self.inputs.values() for name in names)

    def make(self, parameter: str, read: Callable[[str], Any], loading: Loading) -> Any:
        """The parameter, from tensors that ``read`` gives by name, one after the other."""
        return read(self.names[0]) if self.converter is None else self._convert(read, loading)[parameter]

    def makes(self, shape_of: Callable[[str], tuple[int, ...]], loading: Loading) -> dict[str, tuple[int, ...]]:
        """Shapes of all parameters that come out. Raises :class:`RecipeError`."""
        if self.converter is None:
            return {self.key: shape_of(self.names[0])}
        try:
            made = self._convert(lambda name: torch.empty(shape_of(name), device="meta"), loading)
        except RecipeError:
            raise
        except Exception as error:  # whatever torch and transformers raise for tensors that do not fit together
            raise RecipeError(" ".join(str(error).split())[:200] or type(error).__name__) from error
        return {name: tuple(tensor.shape) for name, tensor in made.items()}

    def _convert(self, read: Callable[[str], Any], loading: Loading) -> dict[str, Any]:
        converter = copy.deepcopy(self.converter)  # it collects its inputs
        assert converter is not None, "asked for only where there is one"
        for pattern, names in self.inputs.items():
            for name in names:
                converter.add_tensor(self.key, name, pattern, partial(read, name))
        made = converter.convert(self.key, model=_Shapes(loading), config=loading.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


class RecipeError(Exception):
    """A conversion that cannot be done on these tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """``of``: the recipe of each parameter that the checkpoint gives.

    ``strange``: names in the checkpoint that nothing accounts for. ``misfits``: what does not fit, in words.
    ``absent``: names whose absence makes a conversion impossible.
    """

    of: Mapping[str, Recipe]
    strange: tuple[str, ...]
    misfits: tuple[str, ...]
    absent: tuple[str, ...]


def recipes_for(shapes: Mapping[str, tuple[int, ...]], loading: Loading) -> Recipes:
    """Recipes for a checkpoint whose tensors have these shapes."""
    groups, strange = _collect(shapes, loading)
    found: dict[str, Recipe] = {}
    misfits: list[str] = []
    absent: list[str] = []
    for recipe in groups:
        what = _written(recipe, shapes)
        try:
            made = recipe.makes(shapes.__getitem__, loading)
        except RecipeError as error:
            made, problems = {recipe.key: ()}, [f"{what}: {error}"]
        else:
            problems = [
                f"{what} is {list(shape)}, the configuration says {list(loading.shapes[name])}"
                for name, shape in made.items()
                if name in loading.shapes and shape != loading.shapes[name]
            ]
            strange += [] if made.keys() <= loading.shapes.keys() else recipe.names
        lacking, beyond = _unnumbered(recipe, loading)
        lacking += _unmatched(recipe) if problems else []
        strange += beyond
        absent += lacking
        misfits += [] if lacking else problems
        found |= dict.fromkeys(made, recipe)
    return Recipes(of=found, strange=tuple(sorted(strange)), misfits=tuple(misfits), absent=tuple(sorted(absent)))


@dataclass(slots=True)
class _Group:
    converter: WeightConverter | None
    inputs: dict[str, list[str]] = field(default_factory=dict)


def _collect(names: Iterable[str], loading: Loading) -> tuple[list[Recipe], list[str]]:
    """Names by the parameter that they go into, as ``convert_and_load_state_dict_in_model`` collects them."""
    transforms = copy.deepcopy(loading.transforms)  # some remember what they have seen
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    ignored = [re.compile(pattern) for pattern in loading.ignored]
    known: dict[str, Any] = dict(loading.shapes)
    groups: dict[str, _Group] = {}
    strange = [name for name in names if not name.isascii() or len(name) > _LONGEST_NAME]
    for name in sorted(set(names) - set(strange), key=dot_natural_key):
        key, pattern = rename_source_key(name, renamings, converters, loading.prefix, known)
        if key not in known and name in known:
            key, pattern = rename_source_key(name, [], [], loading.prefix, known)
        if key not in known:
            strange += [] if any(rule.search(key) for rule in ignored) else [name]
            continue
        converter = None if pattern is None else converter_of[pattern]
        group = groups.setdefault(key, _Group(converter))
        if group.converter is not converter or (pattern is None and group.inputs):
            strange.append(name)  # a second tensor for one parameter: only one of them would count
        else:
            group.inputs.setdefault(pattern or name, []).append(name)
    recipes = [
        Recipe(key=key, inputs={p: tuple(own) for p, own in group.inputs.items()}, converter=group.converter)
        for key, group in groups.items()
    ]
    return recipes, strange


def _unnumbered(recipe: Recipe, loading: Loading) -> tuple[list[str], list[str]]:
    """Names that a numbered list of inputs lacks, and names in it that are not of its numbers.

    Such a list (one tensor per expert) is fused in the order of its numbers, so one number for another would pass.
    """
    lacking: list[str] = []
    beyond: list[str] = []
    merged = recipe.converter is not None and any(
        isinstance(op, MergeModulelist) and op.dim == 0 for op in recipe.converter.operations
    )
    for names in recipe.inputs.values():
        parts = [name.split(".") for name in names]
        places = [place for place, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1]
        if len(places) != 1 or not all(own[places[0]].isdigit() for own in parts):
            continue
        [place], count = places, len(names)
        if merged:
            count = loading.shapes.get(recipe.key, (count,))[0]
        numbers = [str(number) for number in range(count)]
        given = {own[place] for own in parts}
        lacking += [".".join([*parts[0][:place], i, *parts[0][place + 1 :]]) for i in numbers if i not in given]
        beyond += [name for name, own in zip(names, parts, strict=True) if own[place] not in numbers]
    return lacking, beyond


def _unmatched(recipe: Recipe) -> list[str]:
    """What a conversion that does not fit has no inputs for."""
    patterns = recipe.converter.source_patterns if recipe.converter is not None else ()
    return [f"{recipe.key} (from {pattern})" for pattern in patterns if pattern not in recipe.inputs]


def _written(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """How a recipe is named: its inputs; of a long list those whose shape is not that of the others."""
    if recipe.converter is None:
        return recipe.names[0]
    odd: list[str] = []
    for names in recipe.inputs.values():
        usual = Counter(shapes[name] for name in names).most_common(1)[0][0]
        odd += [name for name in names if shapes[name] != usual]
    few = recipe.names if len(recipe.names) <= _SHOWN else tuple(odd[:_SHOWN]) or recipe.names[:1]
    more = f" and {len(recipe.names) - len(few)} more" if len(few) < len(recipe.names) else ""
    return f"{recipe.key} from {' and '.join(few)}{more}"


class _Shapes:
    """What conversions may ask a model for: the shape of a parameter."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading

    def get_parameter(self, name: str) -> Any:
        return torch.empty(self._loading.shapes[name], device="meta")

    def __getattr__(self, name: str) -> Any:
        raise RecipeError(f"transformers' conversion needs the model's `{name}`, which cannot be known without it")
