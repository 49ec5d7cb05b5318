"""Bases whose matrices are kept as integers, and every model on them.

In: chains by model, as they are to be served. Out: the same chains on blocks of integers, and for each full model what
that lost. Integers are a function of a matrix alone: what was one block stays one, so all that is shared stays shared,
and sides of any kind stand on the integers as they stood on the matrix. Invariant: errors are measured on what is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from blockc.delta.integers import dequantized
from blockc.delta.integers import quantize as integers
from blockc.diag import Diagnostics
from blockc.evaluate import Agreement, Probe, ProbeError, compare, logits, probe_of, report_probe
from blockc.evaluate.run import NotEvaluatedError
from blockc.graph import Block, Chain, ModelPath
from blockc.ir import DTYPE_NAME, QuantizedRef, TensorRef, quantized_ref, text_digest
from blockc.quantize.places import quantizable
from blockc.share import TensorEvidence
from blockc.spec.deployment import Base, Deployment, Quantize, base_of
from blockc.tune import ModelFiles
from blockc.tune.full import tensor_ref
from blockc.tune.stored import read_tensor
from blockc.zoo import Zoo

# A group of fewer values than this costs more in scales than it saves.
_SMALLEST_GROUP = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What a full model's matrices are kept as.

    ``group`` None: a scale for each row. ``tensors``: the error of each, relative to the matrix, Frobenius norms; empty
    where no weights were read. ``agreement`` with the model as it is in its files, on the probe.
    """

    bits: int
    group: int | None
    nbytes: int
    own_bytes: int
    tensors: tuple[TensorEvidence, ...]
    agreement: Agreement | None = None
    probe: Probe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """``quantizations``: of full models, by name."""

    chains: Mapping[str, Chain]
    quantizations: Mapping[str, Quantization]


def quantize(
    deployment: Deployment,
    files: Mapping[str, ModelFiles],
    chains: Mapping[str, Chain],
    *,
    zoo: Zoo | None,
    diags: Diagnostics,
) -> Quantized:
    """``zoo`` None: nobody knows the weights. Problems with a probe go to ``diags``."""
    found = dict(chains)
    quantizations: dict[str, Quantization] = {}
    work = _Work(zoo=zoo)
    for name, chain in chains.items():
        base = base_of(deployment, name)
        if base.quantize is None and not chain.path.integers:
            continue
        found[name] = replace(chain, path=work.path(chain.path, base.quantize))
        if files[name].is_full:
            quantizations[name] = work.quantization(chain, found[name], base, diags=diags)
    return Quantized(chains=found, quantizations=quantizations)


@dataclass(slots=True, kw_only=True)
class _Work:
    """Each matrix and block once. ``errors``: relative, by the digest of what is kept."""

    zoo: Zoo | None
    tensors: dict[tuple[str, Quantize | None], TensorRef] = field(default_factory=dict)
    blocks: dict[tuple[str, frozenset[tuple[str, QuantizedRef]], Quantize | None], Block] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def path(self, path: ModelPath, how: Quantize | None) -> ModelPath:
        """The path on integers: those of its files, and for the rest those that ``how`` makes."""
        return replace(path, blocks=tuple(self._block(block, path.integers, how) for block in path.blocks))

    def quantization(self, before: Chain, after: Chain, base: Base, *, diags: Diagnostics) -> Quantization:
        """What a full model lost."""
        kept = [
            (occurrence, name, ref, old.tensors[name])
            for occurrence, (old, new) in enumerate(zip(before.path.blocks, after.path.blocks, strict=True))
            for name, ref in new.tensors.items()
            if isinstance(ref, QuantizedRef)
        ]
        probe, agreement = self._agreement(before, after, base, diags=diags)
        for _, _, ref, own in kept:
            if self.zoo is not None and ref.digest not in self.errors:  # made by somebody else, and measured here
                self.errors[ref.digest] = _error(read_tensor(self.zoo, own), read_tensor(self.zoo, ref))
        first = kept[0][2] if kept else None
        return Quantization(
            bits=base.quantize.bits if base.quantize else first.bits if first else 0,
            group=base.quantize.group if base.quantize else first.group if first else None,
            nbytes=sum({ref.digest: ref.nbytes for _, _, ref, _ in kept}.values()),
            own_bytes=sum({own.digest: own.nbytes for _, _, _, own in kept}.values()),
            tensors=tuple(
                TensorEvidence(
                    occurrence=occurrence, parameter=name, codec=f"int{ref.bits}, groups of {ref.group}",
                    lost=self.errors[ref.digest], error=self.errors[ref.digest],
                    nbytes=ref.nbytes, own_bytes=own.nbytes,
                )
                for occurrence, name, ref, own in kept if ref.digest in self.errors
            ),
            agreement=agreement,
            probe=probe,
        )  # fmt: skip

    def _agreement(
        self, before: Chain, after: Chain, base: Base, *, diags: Diagnostics
    ) -> tuple[Probe | None, Agreement | None]:
        """None where there are no weights, or the chain cannot be evaluated, or its probe not be read."""
        if self.zoo is None or base.quantize is None:
            return None, None
        try:
            probe = probe_of(before, base.quantize.probe, self.zoo)
            original, kept = (logits(chain, self.zoo, probe.texts) for chain in (before, after))
        except NotEvaluatedError:
            return None, None
        except (ProbeError, OSError) as error:
            assert base.quantize.probe is not None
            report_probe(error, base.quantize.probe, at=base.quantize_span, diags=diags)
            return None, None
        return probe, compare(original, kept, probe.texts)

    def _block(self, block: Block, integers: Mapping[str, QuantizedRef], how: Quantize | None) -> Block:
        own = {ref.digest: integers[ref.digest] for ref in block.tensors.values() if ref.digest in integers}
        key = block.digest, frozenset(own.items()), how
        if key not in self.blocks:
            names = quantizable(block.structure)
            tensors = {
                name: own.get(ref.digest) or self._tensor(ref, how) if name in names else ref
                for name, ref in block.tensors.items()
            }
            self.blocks[key] = block if tensors == block.tensors else replace(block, tensors=tensors)
        return self.blocks[key]

    def _tensor(self, ref: TensorRef, how: Quantize | None) -> TensorRef:
        key = ref.digest, how
        if key not in self.tensors:
            group = None if how is None else _group(ref.shape[-1], how)
            self.tensors[key] = ref if how is None or group is None else self._integers(ref, how.bits, group)
        return self.tensors[key]

    def _integers(self, ref: TensorRef, bits: int, group: int) -> QuantizedRef:
        *leading, columns = ref.shape
        shapes = (*leading, columns * bits // 8), (*leading, columns // group)
        if self.zoo is None:
            codes = _assumed(ref, "U8", shapes[0], f"codes {bits} {group}")
            scale = _assumed(ref, ref.dtype, shapes[1], f"scale {bits} {group}")
            return quantized_ref(ref.shape, codes, scale, None, bits=bits, group=group)
        value = read_tensor(self.zoo, ref).view(-1, columns)
        dtype: torch.dtype = getattr(torch, DTYPE_NAME[ref.dtype])
        made = integers(value, bits=bits, group=group, dtype=dtype)
        parts = [tensor_ref(part.view(shape)) for part, shape in zip(made, shapes, strict=True)]
        self.zoo.put_tensors(parts)
        found = quantized_ref(ref.shape, parts[0][0], parts[1][0], None, bits=bits, group=group)
        kept = dequantized(*made, None, bits=bits, group=group)
        self.errors[found.digest] = _error(value, kept)
        return found


def _error(value: torch.Tensor, kept: torch.Tensor) -> float:
    """``||W - W'||_F / ||W||_F``, some values at a time."""
    lost = size = 0.0
    for own, other in zip(value, kept, strict=True):  # row by row
        wide = own.float()
        size += float(wide.square().sum(dtype=torch.float64))
        lost += float(other.float().sub(wide).square_().sum(dtype=torch.float64))
    return (lost / size) ** 0.5 if size else 0.0


def _group(columns: int, how: Quantize) -> int | None:
    """The group that divides a row; None where rows are too short to gain from it."""
    group = columns if how.group is None else how.group
    while group > _SMALLEST_GROUP and columns % group:
        group //= 2
    return group if group >= _SMALLEST_GROUP and columns % group == 0 and group * how.bits % 8 == 0 else None


def _assumed(ref: TensorRef, dtype: str, shape: Sequence[int], role: str) -> TensorRef:
    """A name for what is not known (docs/decisions/0010)."""
    return TensorRef(digest=text_digest("assumed integers v1", (ref.digest, role)), dtype=dtype, shape=tuple(shape))
