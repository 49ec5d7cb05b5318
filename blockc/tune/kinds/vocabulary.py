"""Tables and heads that adapters save whole or in rows, by all the names that PEFT gives them.

In: the files of an adapter, whose base may have been resized before it was trained. Out: to the draft, the matrix that
PEFT puts into use for each table and head. Invariant: each of these tensors is applied, or equal to what is applied,
or of no effect and what its name says; else the files are refused.

Of one module PEFT may keep two matrices. The base's own is `X.weight`, or `X.base_layer.weight` under a LoRA,
`X.token_adapter.base_layer.weight` under trained rows, `X.original_module.weight` under `modules_to_save`. There the
trained one is `X.weight`, and `X.modules_to_save.weight` a copy of it. What the model ties to a module has the same
own matrix, and only that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from blockc.tune.adapter import AdapterFiles
from blockc.tune.draft import Draft
from blockc.tune.kinds import saved

_COPY, _ORIGINAL = "modules_to_save", "original_module"
_OWN = ("", "base_layer.", "token_adapter.base_layer.")
_ROWS = "token_adapter.trainable_tokens_delta"

_Matrices = dict[str, torch.Tensor]  # whole ones by module path
_Rows = tuple[Sequence[int], str]


def read(
    files: AdapterFiles,
    draft: Draft,
    whole: Sequence[str] = (),
    *,
    tying: bool = False,
    rows: Mapping[str, Sequence[int]] | None = None,
    part: str = _ROWS,
) -> None:
    """Take what the files hold of tables and heads, and hand it to the draft.

    ``whole``: `modules_to_save`. ``tying``: whether what is tied to one of them is saved with it. ``rows``: token ids
    of rows in tensors called ``part``, by the end of a module's path; the name "" is the table of the input.
    """
    modules = [module for module in draft.vocabulary if draft.has_parameter(f"{module}.weight")]
    trained = _trained(draft, modules, whole, tying)
    values = _own(files, draft, modules, trained)
    for module in trained:
        value = saved.taken(files, draft, f"{module}.weight", f"{module}.weight")
        if value is not None:
            values[module] = value
    _set_rows(files, draft, values, _placed(files, draft, rows or {}, part))
    for module, value in values.items():
        draft.set_parameter(f"{module}.weight", value)
    for module in modules:
        if draft.has_parameter(f"{module}.bias"):
            _set_bias(files, draft, module, module in trained)


def _trained(draft: Draft, modules: Sequence[str], whole: Sequence[str], tying: bool) -> list[str]:
    """Modules that PEFT trains whole, beside the base's own."""
    found = [module for module in modules if any(module.endswith(name) for name in whole)]
    followers = [other for module in found if tying for other in draft.tied(module)]
    return list(dict.fromkeys([*found, *followers]))


def _own(files: AdapterFiles, draft: Draft, modules: Sequence[str], trained: Sequence[str]) -> _Matrices:
    """What the files make of the base's own matrices that are in use, where they say anything new.

    What the base keeps as one tensor PEFT loads as one: of what the files name once, the others follow.
    """
    held: _Matrices = {}
    for module in modules:
        name = f"{module}.weight"
        value = _original(files, draft, name) if module in trained else _resized(files, draft, name)
        if value is not None:
            held[module] = value
    found = dict(held)
    for module, value in held.items():
        for other in draft.tied(module):
            if draft.is_one_with(module, other) and not torch.equal(value, found.setdefault(other, value)):
                files.misfit(f"{module} and {other} are one matrix in the base and two in the files")
    return {
        module: value for module, value in found.items() if module not in trained and not draft.keeps(module, value)
    }


def _resized(files: AdapterFiles, draft: Draft, name: str) -> torch.Tensor | None:
    """The base's own parameter, which stands for the base's, if the files hold it."""
    held = _held(files, name)
    return saved.taken(files, draft, held, name) if held is not None else None


def _held(files: AdapterFiles, name: str) -> str | None:
    """The tensor that is the base's own parameter; others that are it too are taken."""
    module, _, kind = name.rpartition(".")
    held = [own for between in _OWN if (own := f"{module}.{between}{kind}") in files]
    for again in held[1:]:
        files.take_copy(again, held[0])
    return held[0] if held else None


def _original(files: AdapterFiles, draft: Draft, name: str) -> torch.Tensor | None:
    """What a trained parameter stands in the place of, if the files hold it; a copy of the trained one is taken too.

    Rows that the base has must be the base's. They are compared in the coarser of two precisions: the training may
    have loaded the base in another one. Rows of added tokens cannot be compared; what is tied to them uses them, and
    otherwise nothing does.
    """
    module, _, kind = name.rpartition(".")
    if (copy := f"{module}.{_COPY}.{kind}") in files:
        files.take_copy(copy, name)
    held = f"{module}.{_ORIGINAL}.{kind}"
    value = saved.taken(files, draft, held, name) if held in files else None
    base = None if value is None else draft.matrix(module) if kind == "weight" else draft.bias(module)
    if value is None or base is None:
        return None
    own = base.to(files.dtype)[: len(value)]
    coarse = own.to(files.precision(held)).to(files.dtype)
    if not any(torch.equal(value[: len(own)], known) for known in (own, coarse)):
        files.misfit(f"{held} should be the base's own and holds other values")
    return value


def _placed(files: AdapterFiles, draft: Draft, indices: Mapping[str, Sequence[int]], part: str) -> dict[str, _Rows]:
    """Token ids by the module whose rows they are, and the name of the tensor that holds these rows.

    A head that is tied to a table follows it, unless it has rows of other tokens.
    """
    known = {**draft.tables, **draft.linears}
    found: dict[str, _Rows] = {}
    for wanted, rows in indices.items():
        modules = [module for module in known if module == wanted or module.endswith(f".{wanted}")]
        modules = modules if wanted else list(draft.tables)
        if not modules:
            files.take(f"{wanted}.{part}")  # is missing, and reported
        found |= {module: (rows, f"{module}.{part}") for module in modules}
    for module in [module for module in found if module in draft.tables]:
        rows, held = found[module]
        for other in draft.tied(module):
            if other in found and tuple(found[other][0]) != tuple(rows):
                continue
            if f"{other}.{part}" in files:
                files.take_copy(f"{other}.{part}", held)
            found[other] = rows, held
    return found


def _set_rows(files: AdapterFiles, draft: Draft, values: _Matrices, placed: Mapping[str, _Rows]) -> None:
    """Rows in ``values``, or beside what the base has where that stays as it is."""
    taken: dict[str, torch.Tensor | None] = {}
    for module, (rows, held) in placed.items():
        located = draft.tables.get(module) or draft.linears[module]
        if held not in taken:
            taken[held] = files.take(held, (len(rows), located.place.shape[1]))
        delta = taken[held]
        if delta is None or not rows:
            continue
        if located.place.bias is not None:
            files.diags.report(
                "BC208", f"{files.written} trains rows of {module}, which has a bias", at=files.at,
                notes=("PEFT leaves the bias out while such an adapter acts, and adds it when it is merged",),
                help="save the module whole (`modules_to_save`)",
            )  # fmt: skip
            continue
        height = len(values[module]) if module in values else located.place.shape[0]
        added = max(rows) + 1 - height
        if added > 0:
            complete = added <= len(rows) and set(range(height, height + added)) <= set(rows)
            if module in values or module not in draft.vocabulary or not complete:
                files.misfit(f"token {max(rows)} lies outside the {height} of {module}")
                continue
            zeros = delta.new_zeros(added, delta.shape[1])
            values[module] = torch.cat([draft.matrix(module).to(delta.dtype), zeros])
        index = torch.tensor(rows, dtype=torch.int64)
        if module in values:
            values[module] = values[module].index_copy(0, index, delta)
        else:
            draft.add(located.site, draft.rows(index, delta))


def _set_bias(files: AdapterFiles, draft: Draft, module: str, trained: bool) -> None:
    """The bias of a head, which is as high as the head."""
    name = f"{module}.bias"
    if trained:
        _original(files, draft, name)
    held = name if trained else _held(files, name)
    if held is not None and held in files:
        saved.parameter(files, draft, held, name)
