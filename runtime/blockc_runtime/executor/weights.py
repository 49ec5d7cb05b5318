"""Tensors of the plan in the device's memory, each once.

In: the zoo and the blocks of the plan. Out: tensors by digest, and linears in the form the device reads fastest.
Invariant: bytes are checked against their digest before use (by the zoo); a tensor that several blocks bind exists
once; on CPU what needs no other form stays mapped from the zoo's file.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from blockc.diag import refuse
from blockc.ir import QuantizedRef, TensorRef
from blockc.zoo import Zoo
from blockc_runtime.executor.slabs import Slabs
from blockc_runtime.ops.dtypes import torch_dtype
from blockc_runtime.ops.integers import IntegerMatrix
from blockc_runtime.ops.linear.by_kernel import kernel_weights
from blockc_runtime.ops.linear.integers import IntegerWeights
from blockc_runtime.ops.linear.weights import (
    DenseWeights,
    JoinedWeights,
    LinearWeights,
    PackedWeights,
    packs,
)

# What linears that read one value bind: (weight, bias) of each.
LinearRefs = tuple[tuple[TensorRef, TensorRef | None], ...]


# Of matrices and their biases.
MakeWeights = Callable[[list[Tensor], list[Tensor | None]], LinearWeights]


class WeightStore:
    """Loads from ``zoo`` to ``device``. Raises :class:`DiagnosticError` for what is missing, damaged or other."""

    def __init__(
        self,
        zoo: Zoo,
        *,
        device: torch.device,
        linears: Iterable[LinearRefs] = (),
        slabs: Slabs | None = None,
        kept: WeightStore | None = None,
        pins: bool = False,
    ) -> None:
        """``kept``: of another plan on this device. What both need is taken from there until `settle`.

        ``pins``: copies to CUDA go through pinned memory, so that they run beside a step.
        """
        self.zoo = zoo
        self.device = device
        self._pins = pins and device.type == "cuda"
        self.slabs = Slabs(device) if slabs is None else slabs
        self._tensors: dict[str, Tensor] = {}
        self._linears: dict[tuple[str | None, ...], LinearWeights] = {}
        self._kept = kept
        self._beside: WeightStore | None = None
        self._read_from: Callable[[TensorRef], Tensor] | None = None
        self.kept_bytes = 0  # of all that is kept those that were there already
        users: defaultdict[str, set[tuple[str | None, ...]]] = defaultdict(set)
        for refs in linears:
            for weight, _ in refs:
                users[weight.digest].add(_key(refs))
        # Joining copies: a matrix in two different groups would then exist twice.
        self._shared = {digest for digest, keys in users.items() if len(keys) > 1}

    def beside(self, read: Callable[[TensorRef], Tensor] | None = None) -> WeightStore:
        """A store of what this one lacks, which may be filled while this one is used, but not made larger, and dropped.

        ``read``: where from, if not from the zoo.
        """
        made = WeightStore(self.zoo, device=self.device)
        made._beside, made._shared, made._read_from = self, self._shared, read
        return made

    def drop(self) -> None:
        """Keep nothing any longer. On CPU mapped files leave the memory, too."""
        for digest in self._tensors:
            self.zoo.release(digest)
        self._tensors.clear()
        self._linears.clear()

    def tensor(self, ref: TensorRef) -> Tensor:
        """The tensor itself, kept as long as the store."""
        if self._beside is not None and ref.digest in self._beside._tensors:
            return self._beside._tensors[ref.digest]
        if ref.digest not in self._tensors:
            there = None if self._kept is None else self._kept._tensors.get(ref.digest)
            self.kept_bytes += 0 if there is None else there.nbytes
            self._tensors[ref.digest] = self.read(ref) if there is None else there
        return self._tensors[ref.digest]

    def read(self, ref: TensorRef) -> Tensor:
        """The tensor itself, not kept. Read-only on CPU, where it is the zoo's file."""
        if self._read_from is not None:
            return self._read_from(ref)
        host = self.read_host(ref)
        if self._pins:  # torch's allocator keeps it until the copy is done
            return host.pin_memory().to(self.device, non_blocking=True)
        return host.to(self.device)

    def read_host(self, ref: TensorRef) -> Tensor:
        """The tensor in the host's memory: read-only, for it is the zoo's file."""
        stored = self.zoo.tensor(ref.digest)
        if (stored.dtype, stored.shape) != (ref.dtype, ref.shape):
            refuse(
                "BC901",
                f"the plan has tensor {ref.digest} as {ref.dtype}{list(ref.shape)}, "
                f"the zoo as {stored.dtype}{list(stored.shape)}",
            )
        dtype = torch_dtype(ref.dtype)
        if not len(stored.data):
            return torch.zeros(ref.shape, dtype=dtype)
        with warnings.catch_warnings():  # that the buffer is read-only; nothing writes to weights
            warnings.simplefilter("ignore", UserWarning)
            return torch.frombuffer(stored.data, dtype=dtype).view(ref.shape)

    def release(self, ref: TensorRef) -> None:
        """Say that what was :meth:`read` is not needed any more: on CPU it was the zoo's file, mapped into memory."""
        if ref.digest not in self._tensors:
            self.zoo.release(ref.digest)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, in the form in which it is kept."""
        return sum(tensor.nbytes for tensor in self._tensors.values()) + sum(
            weights.nbytes for weights in self._linears.values()
        )

    @property
    def mapped_bytes(self) -> int:
        """Those of them that are the zoo's files: on CPU all that is kept as it was read."""
        return 0 if self.device.type != "cpu" else sum(tensor.nbytes for tensor in self._tensors.values())

    def linears(self, refs: LinearRefs) -> LinearWeights:
        """Linears that read one value."""
        key = _key(refs)
        if self._beside is not None and key in self._beside._linears:
            return self._beside._linears[key]
        if key not in self._linears:
            there = self._there(key, refs)
            self.kept_bytes += 0 if there is None else there.nbytes
            self._linears[key] = self._make(refs) if there is None else there
        return self._linears[key]

    def linears_without(self, refs: LinearRefs, own: Collection[str]) -> None:
        """Keep of these linears what is made of none of the tensors ``own``."""
        for part in [(pair,) for pair in refs] if self._is_split(refs) else [refs]:
            if not any(weight.digest in own for weight, _ in part):
                self.linears(part)

    def keep_only(self, digests: Collection[str]) -> None:
        """Let everything go that is not made of these tensors alone."""
        self._tensors = {digest: tensor for digest, tensor in self._tensors.items() if digest in digests}
        self._linears = {
            key: made for key, made in self._linears.items() if all(digest in digests for digest in key if digest)
        }

    def settle(self) -> None:
        """Take nothing more from another store, so that it may go."""
        self._kept = None

    def operand(self, ref: TensorRef) -> Tensor | IntegerMatrix:
        """What an op that is no linear reads, kept as long as the store."""
        if not isinstance(ref, QuantizedRef):
            return self.tensor(ref)
        return _integers(ref, self.tensor)

    def _there(self, key: tuple[str | None, ...], refs: LinearRefs) -> LinearWeights | None:
        """What another store made of the same, if this one would make it in that form, and it has bytes of its own."""
        kept = self._kept
        if kept is None or self._is_split(refs) or kept._is_split(refs):
            return None
        made = kept._linears.get(key)
        return made if made is not None and made.nbytes else None

    def _is_split(self, refs: LinearRefs) -> bool:
        return len(refs) > 1 and any(weight.digest in self._shared for weight, _ in refs)

    def _make(self, refs: LinearRefs) -> LinearWeights:
        split = self._is_split(refs)
        if any(isinstance(weight, QuantizedRef) for weight, _ in refs):
            alike = len({_form(weight) for weight, _ in refs}) == 1
            return self._joined_integers(refs) if alike and not split else self._separate(refs)
        dtype = torch_dtype(refs[0][0].dtype)
        own, packed = kernel_weights(dtype, self.device), packs(dtype, self.device)
        if (own or packed) and split:
            return self._separate(refs)
        if own:
            return self._copied(partial(own, zeros=self.slabs.zeros), refs)
        if packed:
            return self._copied(PackedWeights, refs)
        if split or len(refs) == 1 or self.device.type == "cpu":
            return DenseWeights(
                [self.tensor(weight) for weight, _ in refs],
                [None if bias is None else self.tensor(bias) for _, bias in refs],
            )
        return self._copied(JoinedWeights, refs)

    def _separate(self, refs: LinearRefs) -> LinearWeights:
        return SeparateWeights([self.linears((pair,)) for pair in refs])

    def _joined_integers(self, refs: LinearRefs) -> LinearWeights:
        pairs = [(weight, bias) for weight, bias in refs if isinstance(weight, QuantizedRef)]
        made = IntegerWeights(
            [_integers(weight, self.read) for weight, _ in pairs],
            [None if bias is None else self.read(bias) for _, bias in pairs],
        )
        for part in (part for weight, bias in pairs for part in (*weight.parts, bias) if part is not None):
            self.release(part)
        return made

    def _copied(self, form: MakeWeights, refs: LinearRefs) -> LinearWeights:
        """``form`` copies, so that what it was made of need not stay."""
        made = form(
            [self.read(weight) for weight, _ in refs], [None if bias is None else self.read(bias) for _, bias in refs]
        )
        for tensor in (tensor for pair in refs for tensor in pair if tensor is not None):
            self.release(tensor)
        return made


class SeparateWeights:
    """Linears on one input that other groups use too, each with weights that the store counts by themselves."""

    nbytes = 0

    def __init__(self, parts: Sequence[LinearWeights]) -> None:
        self.parts = tuple(parts)
        self.count = sum(part.count for part in parts)
        self.reads = sum(part.reads for part in parts)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """``x [..., in]`` -> ``[..., out]`` of each linear."""
        return tuple(y for part in self.parts for y in part(x))


def _integers(ref: QuantizedRef, read: Callable[[TensorRef], Tensor]) -> IntegerMatrix:
    codes, scale, *shift = map(read, ref.parts)
    return IntegerMatrix(codes=codes, scale=scale, shift=shift[0] if shift else None, bits=ref.bits, group=ref.group)


def _form(ref: TensorRef) -> tuple[int, int, bool] | None:
    """What quantised matrices must have in common to be joined."""
    return (ref.bits, ref.group, ref.shift is None) if isinstance(ref, QuantizedRef) else None


def _key(refs: LinearRefs) -> tuple[str | None, ...]:
    return tuple(digest for weight, bias in refs for digest in (weight.digest, None if bias is None else bias.digest))
