"""Checkpoints whose matrices are integers of somebody else's making: AWQ, and compressed-tensors' packed ones.

In: `quantization_config` of a config.json, and a checkpoint. Out: the same checkpoint with a matrix in place of its
parts, which are kept as integers where nothing comes between. What the numbers mean is compressed-tensors' business:
it unpacks them. Invariant: a scheme that is not understood in full is refused by name (BC209), for its codes would be
read as other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from blockc.delta.integers import dequantized, packed
from blockc.diag import Diagnostics, Span
from blockc.tune.checkpoint import Checkpoint

_AWQ, _PACKED = "awq", "compressed-tensors"
# The tensors of one matrix by the ends of their names; with ``?`` those that may be absent. The first tells of it.
_PARTS = {
    _AWQ: ("qweight", "scales", "qzeros?"),
    _PACKED: ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point?"),
}
_INSTALL = "`pip install 'blockc[quantized]'` brings the library that reads it"


class PartsError(Exception):
    """Parts of a matrix that cannot be put together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """One matrix as `blockc.ir.QuantizedRef` has it; ``scale`` and ``shift`` float32."""

    codes: Tensor
    scale: Tensor
    shift: Tensor | None
    bits: int
    group: int

    def dense(self) -> Tensor:
        """Float32 ``[out, in]``."""
        return dequantized(self.codes, self.scale, self.shift, bits=self.bits, group=self.group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """``method``: as `quant_method` says it; ``settings``: the whole `quantization_config`."""

    method: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedCheckpoint(Checkpoint):
    """``held``: as the files are. ``parts``: of each coded matrix, by its name, what ends in which part's name."""

    held: Checkpoint
    parts: Mapping[str, Mapping[str, str]]
    decode: Callable[[Mapping[str, Tensor]], Integers]

    def read(self, name: str) -> Any:
        """The tensor; of a coded matrix what it stands for, in float32."""
        found = self.integers(name)
        return self.held.read(name) if found is None else found.dense()

    def integers(self, name: str) -> Integers | None:
        """A coded matrix as it is kept; None for another tensor. Raises `PartsError`."""
        if name not in self.parts:
            return None
        try:
            return self.decode({end: self.held.read(own) for end, own in self.parts[name].items()})
        except (KeyError, ValueError, RuntimeError) as error:
            raise PartsError(f"{name}: {' '.join(str(error).split())}") from error


def read_coding(config: Mapping[str, Any], *, written: str, diags: Diagnostics, at: Span) -> Coding | None:
    """None where there is none, or where it is refused (BC209)."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    method = str(settings.get("quant_method"))[:40] if isinstance(settings, dict) else ""
    reason = _refusal(method, settings) if isinstance(settings, dict) else "its quantization_config is no object"
    if reason is not None:
        diags.report(
            "BC209", f"{written} is a quantised checkpoint that cannot be read", at=at,
            notes=(f"quant_method = {method}: {reason}",),
            help=_INSTALL if reason is _LIBRARY else "use the unquantised checkpoint, with `quantize = int4`",
        )  # fmt: skip
        return None
    return Coding(method=method, settings=settings)


_LIBRARY = "compressed-tensors is not installed"


def _refusal(method: str, settings: Mapping[str, Any]) -> str | None:
    if method not in _PARTS:
        return "nothing here decodes it"
    try:
        import compressed_tensors  # noqa: F401
    except ImportError:
        return _LIBRARY
    if method == _AWQ:
        if settings.get("version", "gemm") != "gemm":
            return f"version = {str(settings['version'])[:40]}, and only gemm is understood"
        return None if settings.get("bits", 4) == 4 else "only 4 bits are understood"
    try:
        scheme = _scheme(settings)
    except Exception as error:  # whatever pydantic and the library raise for settings that they do not know
        return " ".join(str(error).split())[:200]
    if scheme.input_activations is not None or scheme.output_activations is not None:
        return "it rounds activations, too"
    weights = scheme.weights
    if weights is None or weights.type != "int" or weights.num_bits not in (4, 8):
        return "only integers of 4 and 8 bits are understood"
    if str(settings.get("format")) != "pack-quantized" or weights.strategy not in ("group", "channel"):
        return f"format = {str(settings.get('format'))[:40]}, strategy = {weights.strategy}"
    others = [name for name in ("kv_cache_scheme", "sparsity_config", "transform_config") if settings.get(name)]
    return f"it has a {others[0]}" if others else None


def _scheme(settings: Mapping[str, Any]) -> Any:
    from compressed_tensors.quantization import QuantizationConfig

    known = {name: value for name, value in settings.items() if name not in ("sparsity_config", "transform_config")}
    groups = list(QuantizationConfig.model_validate(known).config_groups.values())
    if len(groups) != 1:
        raise ValueError(f"it has {len(groups)} groups of settings, and one is understood")
    return groups[0]


def decoded(
    checkpoint: Checkpoint, coding: Coding | None, *, written: str, diags: Diagnostics, at: Span
) -> Checkpoint | None:
    """The checkpoint with matrices in place of their parts. Problems go to ``diags``; then None."""
    if coding is None:
        return checkpoint
    root, *others = _PARTS[coding.method]
    parts: dict[str, dict[str, str]] = {}
    for name in checkpoint.files:
        module, _, end = name.rpartition(".")
        if end == root:
            own = {part.rstrip("?"): f"{module}.{part.rstrip('?')}" for part in (root, *others)}
            optional = {part.rstrip("?") for part in others if part.endswith("?")}
            absent = [held for part, held in own.items() if held not in checkpoint.files and part not in optional]
            if absent:
                diags.report(
                    "BC211", f"{written} lacks {absent[0]}", at=at, notes=(f"{name} means nothing without it",),
                    help="copy the files again",
                )  # fmt: skip
                return None
            parts[f"{module}.weight"] = {part: held for part, held in own.items() if held in checkpoint.files}
    if not parts:
        diags.report(
            "BC209", f"{written} is no {coding.method} checkpoint, and its config.json says so", at=at,
            notes=(f"none of its tensors ends in {root}",),
            help="the weights and config.json belong to different models",
        )  # fmt: skip
        return None
    decode = _decode_awq(coding.settings) if coding.method == _AWQ else _decode_packed(_scheme(coding.settings))
    coded = {held for own in parts.values() for held in own.values()}
    files, shapes, dtypes = (
        {name: value for name, value in own.items() if name not in coded}
        for own in (checkpoint.files, checkpoint.shapes, checkpoint.dtypes)
    )
    for name, own in parts.items():
        shape = _shape(checkpoint, own) if _types_fit(checkpoint, own) else None
        if shape is None:
            diags.report(
                "BC202", f"the parts of {name} of {written} do not fit each other", at=at,
                notes=(", ".join(f"{part} {list(checkpoint.shapes[held])}" for part, held in own.items()),),
                help="the files and config.json come from different exports",
            )  # fmt: skip
            return None
        files[name], shapes[name], dtypes[name] = checkpoint.files[own[root]], shape, "F32"
    return CodedCheckpoint(
        root=checkpoint.root, files=files, shapes=shapes, dtypes=dtypes,  # type: ignore[arg-type]
        held=checkpoint, parts=parts, decode=decode,
    )  # fmt: skip


def _types_fit(checkpoint: Checkpoint, own: Mapping[str, str]) -> bool:
    """Codes and zeros are integers, scales are floats."""
    return all(
        checkpoint.dtypes[held] in ({"F16", "BF16", "F32"} if part in ("scales", "weight_scale") else {"I32", "I64"})
        for part, held in own.items()
    )


def _shape(checkpoint: Checkpoint, own: Mapping[str, str]) -> tuple[int, int] | None:
    """``(out, in)`` of a matrix, None where its parts do not fit."""
    shapes = {part: checkpoint.shapes[held] for part, held in own.items()}
    if any(len(shape) != 2 for part, shape in shapes.items() if part != "weight_shape"):
        return None
    if "qweight" in shapes:
        (columns, words), (groups, out) = shapes["qweight"], shapes["scales"]
        fits = out == 8 * words and groups and columns % groups == 0
        return (out, columns) if fits and shapes.get("qzeros", (groups, words)) == (groups, words) else None
    (rows, groups), words = shapes["weight_scale"], shapes["weight_packed"][1]
    if shapes["weight_shape"] != (2,) or rows != shapes["weight_packed"][0] or not groups:
        return None
    out, columns = (int(size) for size in checkpoint.read(own["weight_shape"]).tolist())
    fits = out == rows and 0 < columns <= 8 * words and columns % groups == 0
    return (out, columns) if fits else None


def _decode_awq(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Tensor]], Integers]:
    from compressed_tensors.entrypoints.convert.converters import (
        AutoAWQConverter,
    )

    converter = AutoAWQConverter.from_autoawq_config({**settings, "modules_to_not_convert": None})
    scheme = next(iter(converter.update_config(None).config_groups.values()))
    unpack = _decode_packed(scheme)

    def decode(parts: Mapping[str, Tensor]) -> Integers:
        """The library writes them as its own, which are then unpacked."""
        made = converter.process({f"m.{part}": tensor for part, tensor in parts.items()})
        return unpack({name.removeprefix("m."): tensor for name, tensor in made.items()})

    return decode


def _decode_packed(scheme: Any) -> Callable[[Mapping[str, Tensor]], Integers]:
    from compressed_tensors.compressors.pack_quantized.helpers import (
        unpack_from_int32,
    )

    bits: int = scheme.weights.num_bits

    def decode(parts: Mapping[str, Tensor]) -> Integers:
        shape = tuple(int(size) for size in parts["weight_shape"].tolist())
        scale = parts["weight_scale"].float()
        if len(shape) != 2 or shape[0] != len(scale) or shape[1] % scale.shape[1]:
            raise ValueError(f"weight_shape is {list(shape)}, its scales are {list(scale.shape)}")
        numbers = unpack_from_int32(parts["weight_packed"], bits, torch.Size(shape))
        shift = None
        if not scheme.weights.symmetric:
            zero = parts["weight_zero_point"]
            zero = unpack_from_int32(zero, bits, torch.Size(scale.shape), packed_dim=0)
            shift = -zero.float() * scale
        codes = packed((numbers.int() + (1 << (bits - 1))).to(torch.uint8), bits)
        return Integers(codes=codes, scale=scale, shift=shift, bits=bits, group=shape[1] // scale.shape[1])

    return decode


def without_coding(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration as if its matrices were numbers."""
    return {name: value for name, value in config.items() if name != "quantization_config"}


def as_kept(integers: Integers, dtype: torch.dtype) -> Integers:
    """In the dtype of the model that has it."""
    shift = None if integers.shift is None else integers.shift.to(dtype)
    return replace(integers, scale=integers.scale.to(dtype), shift=shift)
