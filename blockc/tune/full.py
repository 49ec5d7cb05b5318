"""A full checkpoint -> the blocks of its model, tensors stored in the zoo by content.

Every parameter of the model must be found and every tensor of the checkpoint must be accounted for: applied, tied to
one that is, or ignored by transformers itself for this architecture. Anything else is BC211 or BC204. One tensor is
in memory at a time, however large the checkpoint is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError

from blockc.diag import Diagnostics, Span
from blockc.graph import ModelPath
from blockc.ir import DTYPE_CODE, DTYPE_NAME, QuantizedRef, TensorRef, quantized_ref, tensor_digest
from blockc.ir.tensor import DTYPE_BYTES
from blockc.trace import Source, TracedBlock, TracedModel
from blockc.tune.bind import bind
from blockc.tune.checkpoint import Checkpoint
from blockc.tune.coded import CodedCheckpoint, PartsError, as_kept
from blockc.tune.recipe import Recipe, recipes_for
from blockc.zoo import TensorBytes, Zoo

# Bytes of weights done and in all. A tensor counts half when it is hashed and half when the zoo holds it.
OnBytes = Callable[[int, int], None]
# The parameter that makes a tensor, what is done to it, and its dtype.
_Key = tuple[str, str, str]

_SHOWN = 5
# As headers spell them. Anything else holds codes, which mean nothing without what decodes them.
FLOATS = {"F64", "F32", "F16", "BF16"}


def bind_checkpoint(
    traced: TracedModel,
    checkpoint: Checkpoint,
    *,
    zoo: Zoo,
    max_model_len: int,
    kv_dtype: str,
    written: str,
    diags: Diagnostics,
    at: Span,
    on_bytes: OnBytes = lambda done, total: None,
) -> ModelPath | None:
    """Bind every block of ``traced`` to the tensors of ``checkpoint``. Problems go to ``diags``; then None."""
    recipes = _match(traced, checkpoint, written=written, diags=diags, at=at)
    if recipes is None:
        return None
    binder = _Binder(traced, checkpoint, recipes, zoo=zoo, on_bytes=on_bytes)
    try:
        path = bind(traced, binder.tensors_of, max_model_len=max_model_len, kv_dtype=kv_dtype)
        return replace(path, integers=binder.integers)
    except PartsError as error:
        diags.report(
            "BC202", f"the parts of a matrix of {written} do not fit each other", at=at, notes=(str(error)[:200],),
            help="the files and config.json come from different exports",
        )  # fmt: skip
        return None
    except _NotFiniteError as error:
        diags.report(
            "BC203", f"`{error}` of {written} holds values that are not finite as {DTYPE_NAME[traced.dtype]}", at=at,
            help="the checkpoint was damaged, its training diverged, or its values need a wider dtype",
        )  # fmt: skip
        return None
    except (SafetensorError, OSError) as error:
        diags.report(
            "BC203", f"a weight file of {written} cannot be read", at=at,
            notes=(str(error).splitlines()[0][:200],), help="copy the files again",
        )  # fmt: skip
        return None


class _NotFiniteError(Exception):
    """A tensor, by name, whose every use would make logits that are no numbers."""


class _Binder:
    """Reads, converts, casts, transposes, hashes and stores the tensors of one checkpoint, each once."""

    def __init__(
        self,
        traced: TracedModel,
        checkpoint: Checkpoint,
        recipes: Mapping[str, tuple[str, Recipe]],
        *,
        zoo: Zoo,
        on_bytes: OnBytes,
    ) -> None:
        self.traced = traced
        self.checkpoint = checkpoint
        self.maker_of = {parameter: maker for parameter, (maker, _) in recipes.items()}
        self.recipes = dict(recipes.values())
        self.zoo = zoo
        self.on_bytes = on_bytes
        self.known: dict[_Key, TensorRef] = {}
        self.integers: dict[str, QuantizedRef] = {}
        pieces = (*traced.blocks, *([traced.prelude] if traced.prelude is not None else []))
        wanted = {
            self._key(source, dict(block.structure.params)[param].dtype)
            for block in pieces
            for param, source in block.sources.items()
        }
        self.total_bytes = sum(map(self._nbytes, wanted))
        self.halves = 0  # bytes, each counted when hashed and when stored

    def tensors_of(self, block: TracedBlock) -> Mapping[str, TensorRef]:
        """The tensors of one block, which are in the zoo afterwards, as one pack."""
        types = dict(block.structure.params)
        keys = {param: self._key(source, types[param].dtype) for param, source in block.sources.items()}
        fresh: list[tuple[TensorRef, TensorBytes]] = []
        for key in keys.values():
            if key not in self.known:
                ref, _ = tensor_ref(self._make(key, checked=True))
                self.known[key] = ref
                self._keep_integers(key, ref)
                # The bytes are made again where the zoo lacks them: a block need not fit into memory.
                fresh.append((ref, partial(self._bytes, key)))
                self._advance(ref.nbytes)
        self.zoo.put_tensors(fresh)
        self._advance(sum(ref.nbytes for ref, _ in fresh))
        return {param: self.known[key] for param, key in keys.items()}

    def _keep_integers(self, key: _Key, ref: TensorRef) -> None:
        """Of a matrix that the files hold as integers, where it is what they hold and nothing made of it."""
        name, transform, _ = key
        recipe = self.recipes.get(name)
        if not isinstance(self.checkpoint, CodedCheckpoint) or recipe is None:
            return
        if recipe.converter is not None or transform != "none":
            return
        found = self.checkpoint.integers(recipe.names[0])
        if found is None:
            return
        own = as_kept(found, getattr(torch, DTYPE_NAME[ref.dtype]))
        parts = [tensor_ref(part) for part in (own.codes, own.scale, own.shift) if part is not None]
        self.zoo.put_tensors(parts)
        refs = [part for part, _ in parts]
        self.integers[ref.digest] = quantized_ref(
            ref.shape, refs[0], refs[1], refs[2] if own.shift is not None else None, bits=own.bits, group=own.group
        )

    def _key(self, source: Source, dtype: str) -> _Key:
        """What a tensor is made from; tied parameters have one."""
        return self.maker_of.get(source.name, source.name), source.transform, dtype

    def _nbytes(self, key: _Key) -> int:
        name, _, dtype = key
        buffer = self.traced.buffers.get(name)
        return buffer.nbytes if buffer is not None else math.prod(self.traced.loading.shapes[name]) * DTYPE_BYTES[dtype]

    def _make(self, key: _Key, *, checked: bool) -> Any:
        name, transform, dtype = key
        if name in self.traced.buffers:
            return self.traced.buffers[name]
        read = partial(self._read, dtype=getattr(torch, DTYPE_NAME[dtype]), checked=checked)
        tensor = self.recipes[name].make(name, read, self.traced.loading)
        return tensor.transpose(-1, -2) if transform == "transpose" else tensor

    def _bytes(self, key: _Key) -> memoryview:
        return tensor_ref(self._make(key, checked=False))[1]

    def _read(self, name: str, *, dtype: torch.dtype, checked: bool) -> Any:
        tensor = self.checkpoint.read(name).to(dtype)
        if checked and not is_finite(tensor):
            raise _NotFiniteError(name)
        return tensor

    def _advance(self, nbytes: int) -> None:
        self.halves += nbytes
        self.on_bytes(self.halves // 2, self.total_bytes)


def is_finite(tensor: Any) -> bool:
    """Whether all values are numbers: the extremes are not where any value is not.

    One pass without copies, in a twentieth of the time that ``isfinite`` takes.
    """
    return tensor.numel() == 0 or all(math.isfinite(extreme) for extreme in torch.aminmax(tensor))


def tensor_ref(tensor: Any) -> tuple[TensorRef, memoryview]:
    """A torch tensor's reference and its contiguous bytes (little-endian hosts only, as torch's own)."""
    tensor = tensor.detach().contiguous()
    code = DTYPE_CODE[str(tensor.dtype).removeprefix("torch.")]
    shape = tuple(tensor.shape)
    data = memoryview(tensor.view(-1).view(torch.uint8).numpy()).cast("B")
    return TensorRef(digest=tensor_digest(code, shape, data), dtype=code, shape=shape), data


def _match(
    traced: TracedModel, checkpoint: Checkpoint, *, written: str, diags: Diagnostics, at: Span
) -> dict[str, tuple[str, Recipe]] | None:
    """Parameter of the blocks -> what makes it and that parameter's name, which differs where it is tied."""
    recipes = recipes_for(checkpoint.shapes, traced.loading)
    found: dict[str, tuple[str, Recipe]] = {}
    missing = list(recipes.absent)
    needed = {source.name for block in traced.blocks for source in block.sources.values()}
    for parameter in sorted(needed - traced.buffers.keys()):
        maker = next((name for name in partners(parameter, traced) if name in recipes.of), None)
        if maker is None:
            missing.append(parameter)
        else:
            found[parameter] = maker, recipes.of[maker]
    if missing:
        diags.report(
            "BC211", f"{len(missing)} tensors that {traced.architecture} needs are missing from {written}", at=at,
            notes=(listed(missing),),
            help="export the whole checkpoint again; an adapter directory has an `adapter_config.json`",
        )  # fmt: skip
    if recipes.strange:
        diags.report(
            "BC204", f"{len(recipes.strange)} tensors of {written} change nothing that {traced.architecture} has",
            at=at, notes=(listed(recipes.strange),),
            help="what is not applied in full is not served: check that config.json belongs to these weights",
        )  # fmt: skip
    if recipes.misfits:
        diags.report(
            "BC202", f"{len(recipes.misfits)} tensors of {written} do not fit its configuration", at=at,
            notes=(listed(recipes.misfits),), help="the weights and config.json belong to different models",
        )  # fmt: skip
    report_coded(
        checkpoint, (name for _, own in found.values() for name in own.names), written=written, diags=diags, at=at
    )
    return None if diags.has_errors else found


def report_coded(checkpoint: Checkpoint, names: Iterable[str], *, written: str, diags: Diagnostics, at: Span) -> None:
    """Refuse tensors that hold codes of a quantisation in place of numbers (BC209)."""
    coded = sorted({f"{name} is {checkpoint.dtypes[name]}" for name in names if checkpoint.dtypes[name] not in FLOATS})
    if coded:
        diags.report(
            "BC209", f"{len(coded)} tensors of {written} are no floating-point numbers", at=at,
            notes=(listed(coded),), help="use the unquantised checkpoint",
        )  # fmt: skip


def partners(parameter: str, traced: TracedModel) -> list[str]:
    """The parameter and those that it is tied to: any of them in a checkpoint stands for all that are absent."""
    tied = traced.loading.tied
    source = tied.get(parameter, parameter)
    return [parameter, source, *(target for target, own in tied.items() if own == source)]


def listed(names: Sequence[str], between: str = ", ") -> str:
    """The first few names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return between.join(names[:_SHOWN]) + more
