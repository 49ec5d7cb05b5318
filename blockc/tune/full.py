"""A full checkpoint -> the blocks of its model, tensors stored in the zoo by content.

Every parameter of the model must be found and every tensor of the checkpoint must be accounted for: applied, tied to
one that is, or ignored by transformers itself for this architecture. Anything else is BC211 or BC204.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError

from blockc.diag import Diagnostics, Span
from blockc.graph import Block, KvLayerShape, ModelPath
from blockc.ir import DTYPE_CODE, DTYPE_NAME, TensorRef, tensor_digest
from blockc.trace import Source, TracedBlock, TracedModel
from blockc.tune.checkpoint import Checkpoint
from blockc.zoo import Zoo

_SHOWN = 5


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
) -> ModelPath | None:
    """Bind every block of ``traced`` to the tensors of ``checkpoint``. Problems go to ``diags``; then None."""
    names = _match_names(traced, checkpoint, written=written, diags=diags, at=at)
    if names is None:
        return None
    binder = _Binder(traced=traced, checkpoint=checkpoint, names=names, zoo=zoo, max_model_len=max_model_len)
    try:
        prelude = binder.prelude()
        blocks = tuple(binder.block(block, prelude) for block in traced.blocks)
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
    counts = [block.structure.attention_count for block in traced.blocks]
    return ModelPath(
        blocks=blocks,
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
        sites=tuple({module: site for site, module in block.sites.items()} for block in traced.blocks),
        dtype=traced.dtype,
        vocab_size=traced.vocab_size,
        max_model_len=max_model_len,
        prefixes=tuple(block.layer_prefix for block in traced.blocks),
    )


def _effective_window(window: int | None, max_model_len: int) -> int | None:
    """A window that no sequence can outgrow is full attention."""
    return None if window is None or window >= max_model_len else window


class _NotFiniteError(Exception):
    """A tensor, by name, whose every use would make logits that are no numbers."""


class _Binder:
    """Reads, casts, transposes, hashes and stores the tensors of one checkpoint, each once."""

    def __init__(
        self,
        *,
        traced: TracedModel,
        checkpoint: Checkpoint,
        names: Mapping[str, str],
        zoo: Zoo,
        max_model_len: int,
    ) -> None:
        self.traced = traced
        self.checkpoint = checkpoint
        self.names = names
        self.zoo = zoo
        self.max_model_len = max_model_len
        self.known: dict[tuple[str, str], TensorRef] = {}

    def prelude(self) -> Block | None:
        """The block that all others take their context from; its tensors follow from the configuration."""
        if self.traced.prelude is None:
            return None
        tensors: dict[str, TensorRef] = {}
        for param, source in self.traced.prelude.sources.items():
            tensors[param], data = tensor_ref(self.traced.buffers[source.name])
            self.zoo.put_tensors([(tensors[param], data)])
        return Block(structure=self.traced.prelude.structure, binds={}, tensors=tensors, prelude=None, contexts=())

    def block(self, block: TracedBlock, prelude: Block | None) -> Block:
        """One block, with its tensors in the zoo as one pack."""
        tensors: dict[str, TensorRef] = {}
        fresh: list[tuple[TensorRef, memoryview]] = []
        for param, source in block.sources.items():
            key = (self.names.get(source.name, source.name), source.transform)
            if key not in self.known:
                self.known[key], data = self._read(source, dict(block.structure.params)[param].dtype)
                fresh.append((self.known[key], data))
            tensors[param] = self.known[key]
        self.zoo.put_tensors(fresh)
        binds = {
            name: _effective_window(value, self.max_model_len) if name.startswith("window") else value  # type: ignore[arg-type]
            for name, value in block.binds.items()
        }
        reads_context = prelude is not None and bool(block.contexts)
        return Block(
            structure=block.structure,
            binds=binds,
            tensors=tensors,
            prelude=prelude.digest if prelude is not None and reads_context else None,
            contexts=block.contexts,
        )

    def _read(self, source: Source, dtype: str) -> tuple[TensorRef, memoryview]:
        if source.name in self.traced.buffers:
            return tensor_ref(self.traced.buffers[source.name])
        tensor = self.checkpoint.read(self.names[source.name])
        tensor = tensor.to(getattr(torch, DTYPE_NAME[dtype]))
        if not bool(torch.isfinite(tensor).all()):
            raise _NotFiniteError(self.names[source.name])
        return tensor_ref(tensor.transpose(-1, -2) if source.transform == "transpose" else tensor)


def tensor_ref(tensor: Any) -> tuple[TensorRef, memoryview]:
    """A torch tensor's reference and its contiguous bytes (little-endian hosts only, as torch's own)."""
    tensor = tensor.detach().contiguous()
    code = DTYPE_CODE[str(tensor.dtype).removeprefix("torch.")]
    shape = tuple(tensor.shape)
    data = memoryview(tensor.view(-1).view(torch.uint8).numpy()).cast("B")
    return TensorRef(digest=tensor_digest(code, shape, data), dtype=code, shape=shape), data


def _match_names(
    traced: TracedModel, checkpoint: Checkpoint, *, written: str, diags: Diagnostics, at: Span
) -> dict[str, str] | None:
    """Parameter of the model -> tensor of the checkpoint, as transformers would load them."""
    needed = {source.name for block in traced.blocks for source in block.sources.values()} - traced.buffers.keys()
    names: dict[str, str] = {}
    for parameter in sorted(needed):
        found = _find(parameter, traced, checkpoint)
        if found is not None:
            names[parameter] = found
    missing = sorted(needed - names.keys())
    if missing:
        diags.report(
            "BC211",
            f"{len(missing)} tensors that {traced.architecture} needs are missing from {written}",
            at=at,
            notes=(_listed(missing),),
            help="export the whole checkpoint again; an adapter directory has an `adapter_config.json`",
        )
    _report_unused(traced, checkpoint, set(names.values()), written=written, diags=diags, at=at)
    misfits = [
        f"{parameter} is {list(checkpoint.shapes[name])}, the configuration says {list(traced.parameters[parameter])}"
        for parameter, name in names.items()
        if checkpoint.shapes[name] != traced.parameters[parameter]
    ]
    if misfits:
        diags.report(
            "BC202",
            f"{len(misfits)} tensors of {written} have another shape than its configuration says",
            at=at,
            notes=(_listed(misfits),),
            help="the weights and config.json belong to different models",
        )
    return None if missing or misfits or diags.has_errors else names


def _find(parameter: str, traced: TracedModel, checkpoint: Checkpoint) -> str | None:
    """The tensor for a parameter: by its name, with or without the base model's prefix, or by what it is tied to."""
    partners = [parameter]
    partners += [traced.tied[parameter]] if parameter in traced.tied else []
    partners += [target for target, source in traced.tied.items() if source == parameter]
    for name in partners:
        for spelling in _spellings(name, traced.prefix):
            if spelling in checkpoint.files:
                return spelling
    return None


def _spellings(name: str, prefix: str) -> tuple[str, ...]:
    return (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")


def _report_unused(
    traced: TracedModel, checkpoint: Checkpoint, used: set[str], *, written: str, diags: Diagnostics, at: Span
) -> None:
    ignored = [re.compile(pattern) for pattern in traced.ignored]
    # Parts of an encoder that its head does not read: another head's pooling.
    unread = traced.parameters.keys() if traced.head.kind != "tokens" else set()
    tied_alias = {spelling for name in traced.tied for spelling in _spellings(name, traced.prefix)}
    unused = sorted(
        name
        for name in checkpoint.files
        if name not in used
        and name not in tied_alias
        and name not in unread
        and not any(pattern.search(name) for pattern in ignored)
    )
    if unused:
        diags.report(
            "BC204",
            f"{len(unused)} tensors of {written} change nothing that {traced.architecture} has",
            at=at,
            notes=(_listed(unused),),
            help="what is not applied in full is not served: check that config.json belongs to these weights",
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
