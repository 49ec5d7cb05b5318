"""What adapters save beside their own matrices: whole modules and biases.

Each function takes the tensors that are its own, by name, and hands them to the draft.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockc.tune.adapter import AdapterFiles
from blockc.tune.adapter_config import LoraSettings
from blockc.tune.draft import Draft
from blockc.tune.targets import lies_in


def modules(files: AdapterFiles, draft: Draft, names: Sequence[str]) -> None:
    """`modules_to_save`: parameters in every module whose path ends in one of the names, as PEFT matches them."""
    for wanted in names:
        promised = [name for names in draft.path.parameters for name in names if lies_in(name, wanted)]
        for name in promised:
            parameter(files, draft, name, name)
        if not promised and f"{wanted}.weight" not in files:
            files.take(f"{wanted}.weight")  # is missing, and reported; if it is there, nobody asks for it


def parameter(files: AdapterFiles, draft: Draft, held: str, name: str) -> None:
    """The tensor ``held`` of the files is the parameter ``name``, whole; once it was taken there is nothing to do."""
    if held not in files and files.holds(held):
        return
    value = taken(files, draft, held, name)
    if value is not None:
        draft.set_parameter(name, value)


def taken(files: AdapterFiles, draft: Draft, held: str, name: str) -> torch.Tensor | None:
    """The tensor ``held`` in the shape of the parameter ``name``; a table or head may have another height."""
    if held not in files:
        return files.take(held)  # is missing, and reported
    shape, own = draft.shape_of(name), files.shape(held)
    if draft.may_resize(name) and len(own) == len(shape):
        shape = (own[0], *shape[1:])
    return files.take(held, shape)


def biases(files: AdapterFiles, draft: Draft, settings: LoraSettings) -> None:
    """`bias`: of all modules ("all"), or of the adapted linears ("lora_only")."""
    if settings.bias == "none":
        return
    for name in sorted(name for names in draft.path.parameters for name in names if name.endswith(".bias")):
        if settings.bias == "all" or settings.targets(_module(name)):
            inner = f"{_module(name)}.base_layer.bias"
            parameter(files, draft, inner if files.holds(inner) else name, name)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
