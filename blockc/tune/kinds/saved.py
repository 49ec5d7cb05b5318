"""What adapters save beside their own matrices: whole modules, rows of tokens, biases, copies of tables.

Each function takes the tensors that are its own, by name, and hands them to the draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from blockc.tune.adapter import AdapterFiles
from blockc.tune.adapter_config import LoraSettings
from blockc.tune.draft import Draft, Located
from blockc.tune.targets import lies_in


def modules(files: AdapterFiles, draft: Draft, names: Sequence[str]) -> None:
    """`modules_to_save`: parameters in every module whose path ends in one of the names, as PEFT matches them."""
    for wanted in names:
        found = False
        for name in files.plain_names:
            if lies_in(name, wanted) and draft.has_parameter(name):
                found = True
                parameter(files, draft, name, name)
        if not found:
            promised = [name for names in draft.path.parameters for name in names if lies_in(name, wanted)]
            for name in promised or [f"{wanted}.weight"]:
                files.take(name)  # is missing, and reported


def parameter(files: AdapterFiles, draft: Draft, held: str, name: str) -> None:
    """The tensor ``held`` of the files is the parameter ``name``, whole; a table or head may have another height."""
    if held not in files:
        files.take(held)  # is missing, and reported
        return
    shape = draft.shape_of(name)
    if draft.may_resize(name) and len(files.shape(held)) == 2:
        shape = (files.shape(held)[0], *shape[1:])
    value = files.take(held, shape)
    if value is not None:
        draft.set_parameter(name, value)


def tokens(files: AdapterFiles, draft: Draft, indices: Mapping[str, Sequence[int]], part: str) -> None:
    """Rows of tables and heads, in tensors called ``part``, and of heads that are tied to a table and not in the files.

    ``indices``: by the end of a module's path; the name "" is the table that token ids are looked up in.
    """
    for wanted, rows in indices.items():
        places = _places(draft, wanted)
        if not places:
            files.take(f"{wanted}.{part}")  # is missing, and reported
        for module, place in places.items():
            value = files.take(f"{module}.{part}", (len(rows), place.place.shape[1]))
            if max(rows, default=0) >= place.place.shape[0]:
                files.misfit(f"token {max(rows)} lies outside the {place.place.shape[0]} of {module}")
            elif value is not None and rows:
                for own in (place, *_tied(files, draft, module, part)):
                    draft.add(own.site, draft.rows(torch.tensor(rows), value))


def _places(draft: Draft, wanted: str) -> dict[str, Located]:
    if not wanted:
        return dict(draft.tables)
    known = {**draft.tables, **draft.linears}
    return {module: place for module, place in known.items() if module == wanted or module.endswith(f".{wanted}")}


def _tied(files: AdapterFiles, draft: Draft, module: str, part: str) -> list[Located]:
    """Heads that the model keeps as one with a table: PEFT changes their rows along."""
    tied, source = draft.path.tied, f"{module}.weight"
    return [
        head
        for other, head in draft.linears.items()
        if module in draft.tables
        and not files.holds(f"{other}.{part}")
        and source in (tied.get(f"{other}.weight"), *([source] if tied.get(source) == f"{other}.weight" else []))
    ]


def biases(files: AdapterFiles, draft: Draft, settings: LoraSettings) -> None:
    """`bias`: of all modules ("all"), or of the adapted linears ("lora_only")."""
    if settings.bias == "none":
        return
    for name in sorted(name for names in draft.path.parameters for name in names if name.endswith(".bias")):
        if settings.bias == "all" or settings.targets(_module(name)):
            inner = f"{_module(name)}.base_layer.bias"
            parameter(files, draft, inner if inner in files else name, name)


def copies(files: AdapterFiles, draft: Draft) -> None:
    """Tables and heads that PEFT saves along when they are adapted or were resized: it loads them, too."""
    for name in files.plain_names:
        plain = name.replace(".base_layer.weight", ".weight")
        module = _module(plain)
        head = draft.linears.get(module)
        if (module in draft.tables or (head is not None and head.place.after_selection)) and draft.has_parameter(plain):
            parameter(files, draft, name, plain)


def _module(name: str) -> str:
    return name.rpartition(".")[0]
