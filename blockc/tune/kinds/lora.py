"""A LoRA adapter in PEFT layout -> sides at the sites of a chain, tensors stored in the zoo.

Every tensor of the adapter must land at a site (BC204 otherwise), every module that the configuration targets must
have its tensors (BC211), and all shapes must fit (BC202). Nothing is applied in part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError

from blockc.diag import Diagnostics, Span
from blockc.graph import ModelPath
from blockc.ir import DTYPE_NAME, Side, Site, TensorRef, low_rank
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.adapter_config import LoraSettings, read_lora_settings
from blockc.tune.checkpoint import Checkpoint
from blockc.tune.full import FLOATS, is_finite, report_coded, tensor_ref
from blockc.zoo import Zoo

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
# PEFT saves embedding and head along when the adapter targets one of them (`save_embedding_layers`).
_COPY = re.compile(r"base_model\.model\.(?P<module>.+?)(?:\.base_layer)?\.weight")
_SHOWN = 5
_LARGEST = float(torch.finfo(torch.float32).max)  # scales are applied in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A site with the shape of its linear."""

    site: Site
    in_features: int
    out_features: int


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    settings = read_lora_settings(files.config, written=files.written, diags=files.diags, at=files.at)
    if settings is None:
        return None
    path = files.parent.path
    sides = read_lora(
        path, settings, files.checkpoint, zoo=files.zoo, written=files.written, diags=files.diags, at=files.at
    )
    return None if sides is None else Tuned(path=path, sides=sides)


def read_lora(
    path: ModelPath,
    settings: LoraSettings,
    checkpoint: Checkpoint,
    *,
    zoo: Zoo,
    written: str,
    diags: Diagnostics,
    at: Span,
) -> tuple[Side, ...] | None:
    """The adapter's sides, sorted by site. Problems go to ``diags``; then None."""
    targets = linears(path)
    dtype = getattr(torch, DTYPE_NAME[path.dtype])
    copies = _copies(path, checkpoint, dtype)
    parts = _match(targets, settings, checkpoint, copies, written=written, diags=diags, at=at)
    if parts is None:
        return None
    stored: list[tuple[TensorRef, memoryview]] = []
    sides: list[Side] = []
    try:
        for module, (name_a, name_b) in parts.items():
            a, b = (_read(checkpoint, name, dtype) for name in (name_a, name_b))
            bad = [name for name, tensor in ((name_a, a), (name_b, b)) if not is_finite(tensor)]
            if bad:
                diags.report(
                    "BC203", f"`{bad[0]}` of {written} holds values that are not finite", at=at,
                    help="the adapter was damaged or its training diverged; use an earlier checkpoint",
                )  # fmt: skip
                return None
            (ref_a, data_a), (ref_b, data_b) = tensor_ref(a), tensor_ref(b)
            stored += [(ref_a, data_a), (ref_b, data_b)]
            sides.append(Side(site=targets[module].site, terms=(low_rank(ref_a, ref_b, settings.scale_of(module)),)))
    except (SafetensorError, OSError) as error:
        diags.report(
            "BC203", f"a weight file of {written} cannot be read", at=at,
            notes=(str(error).splitlines()[0][:200],), help="copy the files again",
        )  # fmt: skip
        return None
    zoo.put_tensors(stored)
    return tuple(sorted(sides, key=lambda side: side.site))


def linears(path: ModelPath) -> dict[str, Target]:
    """Module path -> its site, for every linear of the chain."""
    targets: dict[str, Target] = {}
    for occurrence, (block, sites) in enumerate(zip(path.blocks, path.sites, strict=True)):
        weights: dict[str, tuple[int, ...]] = {}
        for op in block.structure.ops:
            if op.target == "blockc.linear" and op.args[3] is not None:
                weights[str(op.args[3])] = block.tensors[op.args[1].name].shape  # type: ignore[union-attr]
        for module, site in sites.items():
            out_features, in_features = weights[site]
            targets[module] = Target(
                site=Site(occurrence=occurrence, name=site), in_features=in_features, out_features=out_features
            )
    return targets


def _copies(path: ModelPath, checkpoint: Checkpoint, dtype: Any) -> frozenset[str]:
    """Tensors of the adapter that repeat weights of its base, value for value: they change nothing, rightly."""
    weights: dict[str, TensorRef] = {}
    for block, sites in zip(path.blocks, path.sites, strict=True):
        module_of = {site: module for module, site in sites.items()}
        for op in block.structure.ops:
            if op.target == "blockc.linear" and op.args[3] is not None:
                weights[module_of[str(op.args[3])]] = block.tensors[op.args[1].name]  # type: ignore[union-attr]
            elif op.target == "blockc.embedding":
                weights[str(op.args[2])] = block.tensors[op.args[1].name]  # type: ignore[union-attr]
    found: set[str] = set()
    for name in checkpoint.files:
        match = _COPY.fullmatch(name)
        weight = weights.get(match["module"]) if match else None
        if (
            weight is not None
            and checkpoint.dtypes[name] in FLOATS
            and checkpoint.shapes[name] == weight.shape
            and tensor_ref(_read(checkpoint, name, dtype))[0] == weight
        ):
            found.add(name)
    return frozenset(found)


def _match(
    targets: Mapping[str, Target],
    settings: LoraSettings,
    checkpoint: Checkpoint,
    copies: frozenset[str],
    *,
    written: str,
    diags: Diagnostics,
    at: Span,
) -> dict[str, tuple[str, str]] | None:
    """Module -> names of its A and B, with everything accounted for."""
    found: dict[str, dict[str, str]] = {}
    homeless: list[str] = []
    for name in sorted(checkpoint.files.keys() - copies):
        match = _TENSOR.fullmatch(name)
        if match is None or match["module"] not in targets or not settings.targets(match["module"]):
            homeless.append(name)
        elif match["part"] in found.get(match["module"], {}):
            homeless.append(name)  # the same matrix under a second spelling: only one of them would count
        else:
            found.setdefault(match["module"], {})[match["part"]] = name
    if homeless:
        diags.report(
            "BC204",
            f"{len(homeless)} of {len(checkpoint.files)} tensors of {written} change nothing that its base has",
            at=at,
            notes=(_listed(homeless), _why(homeless[0], targets, settings)),
            help="what is not applied in full is not served: check which base and modules the adapter was made for",
        )
    wanted = [module for module in targets if settings.targets(module)]
    missing = [
        f"{module}.lora_{part}.weight" for module in wanted for part in "AB" if part not in found.get(module, {})
    ]
    if not wanted or missing:
        diags.report(
            "BC211",
            f"{len(missing)} tensors that its configuration promises are missing from {written}"
            if wanted
            else f"the configuration of {written} targets no linear of its base",
            at=at,
            notes=(_listed(missing),) if missing else (f"target_modules = {settings.target_modules}",),
            help="save the adapter again with PEFT",
        )
    _check_shapes(targets, settings, checkpoint, found, written=written, diags=diags, at=at)
    matrices = [name for parts in found.values() for name in parts.values()]
    report_coded(checkpoint, matrices, written=written, diags=diags, at=at)
    if diags.has_errors:
        return None
    return {module: (parts["A"], parts["B"]) for module, parts in found.items()}


def _check_shapes(
    targets: Mapping[str, Target],
    settings: LoraSettings,
    checkpoint: Checkpoint,
    found: Mapping[str, Mapping[str, str]],
    *,
    written: str,
    diags: Diagnostics,
    at: Span,
) -> None:
    misfits: list[str] = []
    for module, parts in found.items():
        rank = settings.rank_of(module)
        expected = {"A": (rank, targets[module].in_features), "B": (targets[module].out_features, rank)}
        for part, name in parts.items():
            if checkpoint.shapes[name] != expected[part]:
                misfits.append(f"{name} is {list(checkpoint.shapes[name])}, its place takes {list(expected[part])}")
        if not abs(settings.scale_of(module)) <= _LARGEST:
            misfits.append(f"the scale of {module} is not finite")
    if misfits:
        diags.report(
            "BC202",
            f"{len(misfits)} tensors of {written} do not fit its base",
            at=at,
            notes=(_listed(misfits),),
            help="shapes decide: the adapter was made for another base, or its configuration was changed",
        )


def _why(name: str, targets: Mapping[str, Target], settings: LoraSettings) -> str:
    match = _TENSOR.fullmatch(name)
    if match is None:
        return f"`{name}` is not a LoRA matrix of a linear"
    if match["module"] not in targets:
        near = [module for module in targets if module.endswith(match["module"].rsplit(".", 1)[-1])]
        return f"the base has no linear `{match['module']}`" + (f"; it has `{near[0]}`" if near else "")
    if settings.targets(match["module"]):
        return f"`{match['module']}` has this matrix under another name too"
    return f"the adapter's configuration does not target `{match['module']}`: {settings.target_modules}"


def _read(checkpoint: Checkpoint, name: str, dtype: Any) -> Any:
    return checkpoint.read(name).to(dtype)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(names[:_SHOWN]) + more
