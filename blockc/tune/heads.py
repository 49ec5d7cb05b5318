"""The model below an adapter under the adapter's own head: its layers as they are, other blocks after them.

In: a chain, and the same architecture traced with the head that the adapter brings. Out: the chain whose head blocks
are bound to the adapter's tensors, and where it has none of them to those of the model below. Invariant: all blocks up
to the last one with attention are the very blocks of the chain below; a head that reads anything else, or lacks a
tensor, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors import SafetensorError

from blockc.diag import Diagnostics
from blockc.graph import Chain, ModelPath
from blockc.ir import CACHE_DTYPE_CODE, DTYPE_NAME, Side, Site, TensorRef
from blockc.trace import Source, TracedBlock, TracedModel
from blockc.tune.adapter import plain
from blockc.tune.adapter_head import CLASSIFIERS, is_for_classes
from blockc.tune.bind import bind
from blockc.tune.checkpoint import Checkpoint
from blockc.tune.full import FLOATS, is_finite, listed, partners, tensor_ref
from blockc.tune.models import ModelFiles
from blockc.tune.recipe import recipes_for
from blockc.tune.targets import all_str, lies_in
from blockc.tune.traced import parameter_shape
from blockc.zoo import TensorBytes, Zoo


def under_own_head(
    files: ModelFiles,
    parent: Chain,
    *,
    below: TracedModel,
    traced: TracedModel,
    adapter: Checkpoint,
    base: Checkpoint,
    zoo: Zoo,
    diags: Diagnostics,
) -> Chain | None:
    """The chain that an adapter with a head of its own stands on. Problems go to ``diags``; then None.

    ``below``: as the parent was traced; ``traced``: with the adapter's head; ``base``: the whole model in the lineage.
    """
    if parent.virtual_tokens:
        diags.report(
            "BC208", f"{files.written} brings a head to a fine-tune with virtual tokens", at=files.span,
            notes=("PEFT can neither merge those below nor put another model's head above them",),
            help=f"put it on `{files.lineage[-1]}`",
        )  # fmt: skip
        return None
    shared = _common(below, traced)
    heads = traced.blocks[shared:]
    if not heads or any(block.structure.attention_count for block in heads):
        diags.report(
            "BC205", f"{files.written} cannot be put on `{files.lineage[1]}`: as {traced.architecture} its layers are "
            f"not those of {below.architecture}", at=files.span,
            help="merge it into a full checkpoint with PEFT",
        )  # fmt: skip
        return None
    tensors = _Tensors(files, parent, below, traced, adapter, base)
    try:
        bound = [tensors.of(block) for block in heads]
    except (SafetensorError, OSError) as error:
        diags.report(
            "BC203", f"a weight file of {files.written} or its base cannot be read", at=files.span,
            notes=(str(error).splitlines()[0][:200],), help="copy the files again",
        )  # fmt: skip
        return None
    if not tensors.finish(zoo, diags):
        return None
    path = parent.path
    given = [*([path.prelude] if path.prelude is not None else []), *path.blocks[:shared]]
    supply = iter([*(block.tensors for block in given), *bound])
    named = bind(
        traced,
        lambda block: next(supply),
        max_model_len=path.max_model_len,
        kv_dtype=CACHE_DTYPE_CODE[files.base.kv_cache_dtype],
    )
    # Of what lies below the blocks are taken, not only the tensors: its table may have another height.
    blocks = (*path.blocks[:shared], *named.blocks[shared:])
    path = replace(named, blocks=blocks, prelude=path.prelude, vocab_size=path.vocab_size)
    places = {name: shared + at for at, block in enumerate(path.blocks[shared:]) for name in block.places}
    return replace(
        parent,
        path=path,
        sides=_moved(parent.sides, shared, places),
        labels=files.labels,
        each_token=files.head.kind == "token_classification",
        embedding=files.embedding,
    )


def without_absent_classifiers(config: Mapping[str, Any], path: ModelPath) -> Mapping[str, Any]:
    """An adapter's configuration without the names that PEFT puts into `modules_to_save` and its model has not."""
    saved = config.get("modules_to_save") or []
    if not is_for_classes(config) or not all_str(saved):
        return config
    parameters = [name for names in path.parameters for name in names]
    kept = [name for name in saved if name not in CLASSIFIERS or any(lies_in(own, name) for own in parameters)]
    return {**config, "modules_to_save": list(dict.fromkeys(kept))}


def _common(below: TracedModel, traced: TracedModel) -> int:
    """How many blocks two traces have in common, from the first one on."""
    preludes = [None if one.prelude is None else one.prelude.structure for one in (below, traced)]
    if preludes[0] != preludes[1] or below.kv_layers != traced.kv_layers:
        return 0
    pairs = list(zip(below.blocks, traced.blocks, strict=False))
    return next((at for at, (one, other) in enumerate(pairs) if _identity(one) != _identity(other)), len(pairs))


def _identity(block: TracedBlock) -> object:
    """All but the names of what it is bound to."""
    return block.structure, block.binds, block.contexts


def _moved(sides: Sequence[Side], shared: int, places: Mapping[str, int]) -> tuple[Side, ...]:
    """Fine-tunes below act where they did. What they did to a head that is no more is gone with it."""
    kept = [side for side in sides if side.site.occurrence < shared]
    kept += [
        replace(side, site=Site(occurrence=places[side.site.name], name=side.site.name))
        for side in sides
        if side.site.occurrence >= shared and side.site.name in places
    ]
    return tuple(sorted(kept, key=lambda side: side.site))


@dataclass(slots=True)
class _Tensors:
    """Finds the tensors of head blocks: in the adapter, in the chain below, in the files of the whole model."""

    files: ModelFiles
    parent: Chain
    below: TracedModel
    traced: TracedModel
    adapter: Checkpoint
    base: Checkpoint
    held: dict[str, str] = field(init=False)
    known: dict[str, TensorRef] = field(init=False)
    fresh: dict[str, tuple[TensorRef, TensorBytes]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.held = {plain(name): name for name in self.adapter.files}
        path = self.parent.path
        self.known = {
            self._bare(name): block.tensors[param]
            for block, names in zip(path.blocks, path.parameters, strict=True)
            for name, param in names.items()
            if name not in path.transposed
        }

    def of(self, block: TracedBlock) -> dict[str, TensorRef]:
        """The tensors of a block; without those that `finish` reports. Raises OSError, SafetensorError."""
        types = dict(block.structure.params)
        found = {
            param: self._find(source, types[param].dtype, parameter_shape(block, param))
            for param, source in block.sources.items()
        }
        return {param: ref for param, ref in found.items() if ref is not None}

    def finish(self, zoo: Zoo, diags: Diagnostics) -> bool:
        """Report what is wrong; if nothing is, fill the zoo and return True."""
        written, at = self.files.written, self.files.span
        if self.missing:
            diags.report(
                "BC211", f"{len(self.missing)} tensors of the head of {written} are neither in it nor in its base",
                at=at, notes=(f"{listed(self.missing)}: drawn at random when it was trained, and not saved",),
                help="train it with these modules in `modules_to_save`, or on a checkpoint that has them",
            )  # fmt: skip
        for code, problems in sorted(self.wrong.items()):
            diags.report(
                code, f"{len(problems)} tensors of the head of {written} do not fit its base", at=at,
                notes=(listed(problems, "; "),), help="save the adapter again with PEFT, unquantised",
            )  # fmt: skip
        if self.missing or self.wrong:
            return False
        zoo.put_tensors(list(self.fresh.values()))
        return True

    def _bare(self, name: str) -> str:
        return name.removeprefix(f"{self.traced.loading.prefix}.")

    def _find(self, source: Source, dtype: str, shape: tuple[int, ...]) -> TensorRef | None:
        if source.name in self.traced.buffers:
            return self._stored(self.traced.buffers[source.name])
        if source.name in self.held:
            tensor = self._checked(self.adapter, self.held[source.name])
        elif (ref := self._known(source)) is not None and (ref.dtype, ref.shape) == (dtype, shape):
            return ref
        else:
            tensor = self._of_base(source.name)
        if tensor is None:
            return None
        tensor = tensor.to(getattr(torch, DTYPE_NAME[dtype]))
        tensor = tensor.transpose(-1, -2) if source.transform == "transpose" else tensor
        if tuple(tensor.shape) != shape:
            self._report("BC202", f"{source.name} is {list(tensor.shape)}, its place takes {list(shape)}")
            return None
        if not is_finite(tensor):
            self._report("BC203", f"{source.name} holds values that are not finite as {DTYPE_NAME[dtype]}")
            return None
        return self._stored(tensor)

    def _known(self, source: Source) -> TensorRef | None:
        return self.known.get(self._bare(source.name)) if source.transform == "none" else None

    def _of_base(self, name: str) -> torch.Tensor | None:
        recipes = recipes_for(self.base.shapes, self.traced.loading).of
        maker = next((own for own in partners(name, self.traced) if own in recipes), None)
        if maker is None:
            self.missing.append(name)
            return None
        recipe = recipes[maker]
        if any(self._checked(self.base, own) is None for own in recipe.names):
            return None
        made: torch.Tensor = recipe.make(maker, self.base.read, self.traced.loading)
        return made

    def _checked(self, checkpoint: Checkpoint, name: str) -> torch.Tensor | None:
        if checkpoint.dtypes[name] not in FLOATS:
            self._report("BC209", f"{name} is {checkpoint.dtypes[name]}")
            return None
        tensor: torch.Tensor = checkpoint.read(name)
        return tensor

    def _report(self, code: str, problem: str) -> None:
        self.wrong.setdefault(code, []).append(problem)

    def _stored(self, tensor: torch.Tensor) -> TensorRef:
        ref, data = tensor_ref(tensor)
        self.fresh[ref.digest] = ref, data
        return ref
