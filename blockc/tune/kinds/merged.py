"""Adapters of every other type that PEFT can merge: merged at compile time, by PEFT's own code.

In: the files, and the model that they stand on, made of the zoo's tensors with the fine-tunes below folded in. Out:
what changed, in the cheapest exact form: vectors and biases as they are, few values as a sparse term, few directions
as one of low rank, else the merged matrix itself, which makes its block a private one. The model is in memory as a
whole while this runs, in float32: PEFT's tuners share matrices across modules, so none of them can be merged alone.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from blockc.delta.codecs import directions
from blockc.fine_tunes import MERGED
from blockc.ir import term
from blockc.trace import UntraceableError, config_of
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.adapter_config import short
from blockc.tune.draft import Draft, Located
from blockc.tune.fields import report_fields, strange_fields
from blockc.tune.folding import folded_tensors
from blockc.tune.full import is_finite
from blockc.tune.patterns import Keyed, Matcher, SlowPatternError
from blockc.tune.stored import read_tensor
from blockc.tune.targets import Targets, malformed, targets_of

# Of a matrix' values: beyond it a sparse term takes more than the matrix.
_SPARSE = 1 / 8
_MOST_RANK = 64
# What is left of a change beside its leading directions when it is of low rank, relative: rounding in float32.
_ROUNDING = 2e-5


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    draft = Draft(files)
    merged = _merge(files)
    if merged is None:
        return None
    before, after = merged
    for name in sorted(name for names in draft.path.parameters for name in names if name in before):
        if torch.equal(before[name], after[name]):
            continue
        if not is_finite(after[name].to(files.dtype)):
            files.damaged(f"merging it makes values of {name} that are not finite")
            return None
        linear = draft.linears.get(name.removesuffix(".weight"))
        if linear is None or not _as_term(draft, linear, _turned(draft, name, after[name] - before[name])):
            draft.set_parameter(name, after[name].to(files.dtype))
    files.left.clear()  # PEFT has loaded all of them
    return draft.finish()


def _turned(draft: Draft, name: str, value: torch.Tensor) -> torch.Tensor:
    return value.t() if name in draft.path.transposed else value


def _as_term(draft: Draft, linear: Located, change: torch.Tensor) -> bool:
    """Whether a matrix' change is sparse or of low rank, and has been added as such."""
    files = draft.files
    if linear.site in {side.site for side in files.parent.sides}:
        return False  # what lies below was folded in: the merged matrix stands for both
    index = change.flatten().nonzero().flatten()
    if len(index) <= _SPARSE * change.numel():
        stored = {"index": files.store(index), "value": files.store(change.flatten()[index].to(files.dtype))}
        draft.add(linear.site, term("sparse", stored, rows=change.shape[0], columns=change.shape[1]))
        return True
    most = min(_MOST_RANK, change.numel() // (2 * sum(change.shape)))
    if most < 1:
        return False
    found = directions(change, most)
    kept = found.s > found.s[0] * _ROUNDING
    rank = int(kept.sum())
    rest = change - (found.u[:, :rank] * found.s[:rank]) @ found.v[:rank]
    if float(rest.norm()) > _ROUNDING * float(change.norm()):
        return False
    encoded = found.encode(0, rank, files.dtype)
    stored = {role: files.store(value) for role, value in encoded.tensors.items()}
    draft.add(linear.site, term("low_rank", stored, scale=1.0))
    return True


def _merge(files: AdapterFiles) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]] | None:
    """The model's parameters before and after, float32. Problems go to the files' diagnostics; then None."""
    try:
        import peft
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError:
        files.diags.report(
            "BC208", f"{files.written} has to be merged by PEFT, which is not installed", at=files.at,
            help="install it: pip install 'blockc[verify]'",
        )  # fmt: skip
        return None
    kind = str(files.config["peft_type"])
    known = inspect.signature(PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)]).parameters
    strange = strange_fields(files.config, known, f"PEFT {peft.__version__} does not know it")
    report_fields(files, strange, "merge the adapter with the PEFT that made it")
    matcher = Matcher()
    wrong = malformed(files.config, matcher)
    for field, wanted in wrong:
        files.diags.report(
            "BC207", f"`{field} = {short(files.config[field])}` of {files.written} is not {wanted}", at=files.at,
            help="save the adapter again with PEFT",
        )  # fmt: skip
    if strange or wrong:
        return None
    try:
        model = _model(files)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        config = peft.PeftConfig.from_pretrained(files.checkpoint.root)
        _resolve(config, targets_of(files.config, matcher), [name for name, _ in model.named_modules() if name])
        tuned = peft.get_peft_model(model, config)
        if not _load(files, tuned):
            return None
        merged: Any = tuned.eval().merge_and_unload()
        return before, merged.state_dict()
    except (SafetensorError, OSError) as error:
        files.damaged(str(error).splitlines()[0][:200])
    except SlowPatternError:
        raise
    except Exception as error:  # PEFT raises what it likes
        files.diags.report(
            "BC208", f"PEFT cannot put {files.written} on its base: {' '.join(str(error).split())[:200]}", at=files.at,
            notes=(f"{MERGED[kind]}, merged by PEFT {peft.__version__}",),
            help="check which base the adapter was made for",
        )  # fmt: skip
    return None


def _resolve(config: Any, targets: Targets, modules: list[str]) -> None:
    """Write paths where patterns stand, which PEFT would match for as long as they take."""
    named = getattr(config, "target_modules", None)
    if named and not (isinstance(named, str) and named.lower() == "all-linear"):
        config.target_modules = {module for module in modules if module in targets}
        for field in ("exclude_modules", "layers_to_transform", "layers_pattern"):
            if hasattr(config, field):
                setattr(config, field, None)
    elif targets.excluded:
        config.exclude_modules = {name for name in modules if targets.matcher.matches(targets.excluded, name)}
    for field in ("rank_pattern", "alpha_pattern"):
        if patterns := getattr(config, field, None):
            keyed = Keyed(patterns, targets.matcher)
            values = {module: keyed.get(module, math.nan) for module in modules}
            found = {f"^{re.escape(name)}$": value for name, value in values.items() if not math.isnan(value)}
            setattr(config, field, found)


def _load(files: AdapterFiles, tuned: Any) -> bool:
    """Whether every tensor of the file has a place, and every place of the adapter a tensor."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = {name: value.shape for name, value in get_peft_model_state_dict(tuned).items()}
    held = load_file(files.checkpoint.root / "adapter_model.safetensors")
    for name in wanted.keys() - held.keys():
        files.take(name.removeprefix("base_model.model."))  # is missing, and reported
    for name, value in held.items():
        if name in wanted and value.shape != wanted[name]:
            files.misfit(f"{name} is {list(value.shape)}, its place takes {list(wanted[name])}")
        if not is_finite(value):
            files.damaged(f"{name} holds values that are not finite")
    strange = held.keys() - wanted.keys()
    if wanted.keys() - held.keys() or strange or files.has_misfits or files.diags.has_errors:
        files.left -= held.keys() - strange
        files.finish(f"PEFT has no place for `{min(strange)}`" if strange else "")
        return False
    set_peft_model_state_dict(tuned, held)
    return True


def _model(files: AdapterFiles) -> Any:
    """The model below the adapter as transformers has it, in float32."""
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    of_classes = AutoModelForTokenClassification if files.parent.each_token else AutoModelForSequenceClassification
    loader = of_classes if files.parent.labels else AutoModelForCausalLM
    loader = loader if files.parent.embedding is None else AutoModel
    try:
        model = loader.from_config(config_of(files.model_config), dtype=torch.float32)
    except UntraceableError as error:  # its own problem was reported where it is declared
        raise ValueError(str(error)) from error
    path = files.parent.path
    state: dict[str, torch.Tensor] = {}
    for occurrence, (block, parameters) in enumerate(zip(path.blocks, path.parameters, strict=True)):
        tensors = {name: read_tensor(files.zoo, ref) for name, ref in block.tensors.items()}
        for side in files.parent.sides_at.get(occurrence, ()):
            place = block.places[side.site.name]
            if place.param is not None:
                tensors |= folded_tensors(place, side, block.tensors, files.zoo)
        for full, name in parameters.items():
            value = tensors[name]
            state[full] = value.t() if full in path.transposed else value
    own = {name: value.float() for name, value in state.items() if name in model.state_dict()}
    model.load_state_dict(own, strict=False)
    model.tie_weights()
    return model
