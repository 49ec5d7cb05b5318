"""The files of an adapter while they are read.

In: the tensors and configuration of a directory. Out: tensors, each taken by name and shape, stored in the zoo when
all is well. Invariant: `finish` is true only if every tensor of the files was taken or is known to change nothing,
none was missing, none had another shape, held codes, or values that are not finite. Nothing is applied in part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from blockc.diag import Diagnostics, Span
from blockc.graph import Chain, ModelPath
from blockc.ir import DTYPE_NAME, Side, Site, TensorRef
from blockc.tune.checkpoint import Checkpoint
from blockc.tune.full import FLOATS, is_finite, listed, tensor_ref
from blockc.zoo import Zoo

_ADAPTER_NAME = re.compile(r"\.default(?=\.|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a fine-tune makes of the chain below it.

    ``sides``: its own, without those below. ``path``: the one below, or its own where it replaces whole tensors.
    ``resets``: where what lies below has no say any more.
    """

    path: ModelPath
    sides: tuple[Side, ...]
    virtual_tokens: tuple[int, ...] = ()
    resets: frozenset[Site] = frozenset()


class AdapterFiles:
    """One adapter. ``dtype``: what its tensors are cast to, that of the model that it is put on.

    ``model_config``: config.json of the whole model below it.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        checkpoint: Checkpoint,
        parent: Chain,
        written: str,
        zoo: Zoo,
        diags: Diagnostics,
        at: Span,
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.checkpoint, self.written = config, checkpoint, written
        self.parent, self.zoo, self.diags, self.at = parent, zoo, diags, at
        self.model_config = model_config or {}
        self.dtype: torch.dtype = getattr(torch, DTYPE_NAME[parent.path.dtype])
        self._names: dict[str, str] = {}
        for name in sorted(checkpoint.files, key=lambda name: (len(name), name)):
            self._names.setdefault(plain(name), name)
        self.left = set(checkpoint.files)
        self._missing: list[str] = []
        self._misfits: list[str] = []
        self._coded: list[str] = []
        self._fresh: dict[str, tuple[TensorRef, memoryview]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the files hold a tensor of this plain name that nobody has taken."""
        return self._names.get(name) in self.left

    def holds(self, name: str) -> bool:
        """Whether the files hold a tensor of this plain name, taken or not."""
        return name in self._names

    @property
    def plain_names(self) -> tuple[str, ...]:
        """Plain names of all tensors that nobody has taken, sorted."""
        return tuple(sorted(name for name, held in self._names.items() if held in self.left))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor by its plain name."""
        return self.checkpoint.shapes[self._names[name]]

    def take(self, name: str, shape: Sequence[int] | None = None) -> torch.Tensor | None:
        """The tensor of a plain name in the model's dtype; None if something is wrong, which `finish` reports."""
        plain_name, name = name, self._names.get(name, name)
        if name not in self.left:
            self._missing.append(plain_name)
            return None
        self.left.discard(name)
        held = self.checkpoint.shapes[name]
        if shape is not None and held != tuple(shape):
            self._misfits.append(f"{name} is {list(held)}, its place takes {list(shape)}")
            return None
        if self.checkpoint.dtypes[name] not in FLOATS:
            self._coded.append(f"{name} is {self.checkpoint.dtypes[name]}")
            return None
        try:
            tensor: torch.Tensor = self.checkpoint.read(name).to(self.dtype)
        except (SafetensorError, OSError) as error:
            self.damaged(str(error).splitlines()[0][:200])
            return None
        if not is_finite(tensor):
            self.diags.report(
                "BC203", f"`{name}` of {self.written} holds values that are not finite", at=self.at,
                help="the adapter was damaged or its training diverged; use an earlier checkpoint",
            )  # fmt: skip
            return None
        return tensor

    def take_copy(self, name: str, of: str) -> None:
        """Take a tensor that PEFT saves beside another one; it must be equal to that bit for bit (else BC202)."""
        own, other = self._names[name], self._names.get(of)
        self.left.discard(own)
        if other is None:
            return  # whoever needs the other reports that it is missing
        types = [(self.checkpoint.dtypes[held], self.checkpoint.shapes[held]) for held in (own, other)]
        equal = types[0] == types[1]
        if equal and types[0][0] in FLOATS:
            try:
                refs = [tensor_ref(self.checkpoint.read(held))[0] for held in (own, other)]
            except (SafetensorError, OSError) as error:
                self.damaged(str(error).splitlines()[0][:200])
                return
            equal = refs[0] == refs[1]
        if not equal:
            self.misfit(f"{own} should be a copy of {other} and is not")

    def precision(self, name: str) -> torch.dtype:
        """The dtype in which the files hold a tensor of floating-point numbers, by its plain name."""
        return getattr(torch, DTYPE_NAME[self.checkpoint.dtypes[self._names[name]]])  # type: ignore[no-any-return]

    @property
    def has_misfits(self) -> bool:
        """Whether `misfit` was called, or a shape was another."""
        return bool(self._misfits)

    def misfit(self, text: str) -> None:
        """Report something that does not fit the base (BC202), with all others, in `finish`."""
        self._misfits.append(text)

    def store(self, tensor: torch.Tensor) -> TensorRef:
        """A tensor's reference; `finish` puts its bytes into the zoo."""
        ref, data = tensor_ref(tensor)
        self._fresh[ref.digest] = ref, data
        return ref

    def damaged(self, why: str) -> None:
        """Report that a file cannot be read (BC203)."""
        self.diags.report(
            "BC203", f"a weight file of {self.written} cannot be read", at=self.at, notes=(why,),
            help="copy the files again",
        )  # fmt: skip

    def finish(self, why: str = "") -> bool:
        """Report all that is wrong, ``why`` with what was left over; if nothing is, fill the zoo and return True."""
        if self.left:
            self.diags.report(
                "BC204",
                f"{len(self.left)} of {len(self.checkpoint.files)} tensors of {self.written} change nothing that its "
                "base has",
                at=self.at,
                notes=tuple(note for note in (listed(sorted(self.left), "; "), why) if note),
                help="what is not applied in full is not served: check which base and modules the adapter was made for",
            )
        if self._missing:
            self.diags.report(
                "BC211",
                f"{len(self._missing)} tensors that its configuration promises are missing from {self.written}",
                at=self.at, notes=(listed(self._missing, "; "),),
                help="save the adapter again with the library that made it",
            )  # fmt: skip
        if self._misfits:
            self.diags.report(
                "BC202", f"{len(self._misfits)} tensors of {self.written} do not fit its base", at=self.at,
                notes=(listed(self._misfits, "; "),),
                help="shapes decide: the adapter was made for another base, or its configuration was changed",
            )  # fmt: skip
        if self._coded:
            self.diags.report(
                "BC209", f"{len(self._coded)} tensors of {self.written} are no floating-point numbers", at=self.at,
                notes=(listed(self._coded, "; "),), help="save the adapter unquantised",
            )  # fmt: skip
        if self.diags.has_errors:
            return False
        self.zoo.put_tensors(list(self._fresh.values()))
        return True


def plain(name: str) -> str:
    """A tensor's name without PEFT's prefix, and without the name of the adapter, which some versions write."""
    return _ADAPTER_NAME.sub("", name).removeprefix("base_model.model.").removeprefix("base_model.")
