"""LoRA and its variants in PEFT's layout (arXiv 2106.09685; rsLoRA 2312.03732; DoRA 2402.09353).

Every module that the configuration targets must have its tensors, and every tensor must land at a site of the base.
DoRA's magnitude becomes a scale of the output: ``s = m / ||W + scale B A||`` over each row, with W as the fine-tunes
below leave it; the base's bias is not scaled.
"""

from __future__ import annotations

import torch

from blockc.ir import Side, Term, low_rank, term
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.adapter_config import LoraSettings, read_lora_settings
from blockc.tune.draft import Draft, Located
from blockc.tune.folding import folded_bias, folded_matrix
from blockc.tune.kinds import saved

_LARGEST = float(torch.finfo(torch.float32).max)  # scales are applied in float32


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    settings = read_lora_settings(files.config, written=files.written, diags=files.diags, at=files.at)
    if settings is None:
        return None
    draft = Draft(files)
    below = {side.site: side for side in files.parent.sides}
    saved.biases(files, draft, settings)
    wanted = [module for module in draft.linears if _targets(files, settings, module)]
    for module in wanted:
        linear = draft.linears[module]
        _linear(files, draft, settings, module, below.get(linear.site))
    looked_up = [module for module in draft.tables if settings.targets(module)]
    for module in looked_up:
        draft.add(draft.tables[module].site, *_table(files, settings, module, draft.tables[module]))
    if not wanted and not looked_up:
        files.diags.report(
            "BC211", f"the configuration of {files.written} targets no linear of its base", at=files.at,
            notes=(f"target_modules = {settings.targeted}",),
            help="check which base the adapter was made for",
        )  # fmt: skip
    saved.tokens(files, draft, settings.trainable_tokens, "token_adapter.trainable_tokens_delta")
    saved.modules(files, draft, settings.modules_to_save)
    saved.copies(files, draft)
    return draft.finish(_why(files, draft, settings))


def _targets(files: AdapterFiles, settings: LoraSettings, module: str) -> bool:
    """PEFT puts the adapter of a table at a tied head as well if `ensure_weight_tying` is set."""
    return settings.targets(module) or (settings.ensure_weight_tying and f"{module}.lora_A.weight" in files)


def _linear(files: AdapterFiles, draft: Draft, settings: LoraSettings, module: str, below: Side | None) -> None:
    linear = draft.linears[module]
    rank, scale = settings.rank_of(module), settings.scale_of(module)
    a = files.take(f"{module}.lora_A.weight", (rank, linear.in_features))
    b = files.take(f"{module}.lora_B.weight", (linear.out_features, rank))
    bias = files.take(f"{module}.lora_B.bias", (linear.out_features,)) if settings.lora_bias else None
    magnitude = _magnitude(files, module, linear) if settings.dora else None
    if not abs(scale) <= _LARGEST:
        files.misfit(f"the scale of {module} is not finite")
        return
    if a is None or b is None:
        return
    whole = draft.trained_bias(linear.site)
    if whole is None:
        whole = folded_bias(below, linear.bias, files.zoo)
    if magnitude is not None:
        draft.add(linear.site, *_dora(files, linear, below, a, b, scale, magnitude))
    else:
        draft.add(linear.site, low_rank(files.store(a), files.store(b), scale))
    if bias is not None:
        whole = scale * bias.float() + (0 if whole is None else whole)
    if whole is not None and (bias is not None or magnitude is not None):
        draft.set_bias(linear.site, whole)


def _magnitude(files: AdapterFiles, module: str, linear: Located) -> torch.Tensor | None:
    name = f"{module}.lora_magnitude_vector"
    return files.take(name if name in files else f"{name}.weight", (linear.out_features,))


def _dora(
    files: AdapterFiles,
    linear: Located,
    below: Side | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    magnitude: torch.Tensor,
) -> list[Term]:
    weight = folded_matrix(linear.place, below, linear.weight, files.zoo)
    norm = torch.linalg.vector_norm(weight + scale * (b.float() @ a.float()), dim=1)
    factor = magnitude.float() / norm
    if not torch.isfinite(factor).all():
        files.misfit(f"a row of {linear.site.name} has no direction that DoRA could scale")
        return []
    return [
        term("out_scale", {"value": files.store(factor.to(files.dtype))}),
        low_rank(files.store(a), files.store((factor[:, None] * b.float()).to(files.dtype)), scale),
    ]


def _table(files: AdapterFiles, settings: LoraSettings, module: str, table: Located) -> list[Term]:
    rank, scale = settings.rank_of(module), settings.scale_of(module)
    height, width = _height(files, module, table), table.place.shape[1]
    a = files.take(f"{module}.lora_embedding_A", (rank, height))
    b = files.take(f"{module}.lora_embedding_B", (width, rank))
    if settings.dora:
        files.misfit(f"DoRA on the table {module} is not supported")
    if a is None or b is None:
        return []
    return [low_rank(files.store(a), files.store(b), scale)]


def _height(files: AdapterFiles, module: str, table: Located) -> int:
    """The vocabulary of the fine-tune: that of the table that is saved along, else the base's."""
    name = f"{module}.base_layer.weight"
    return files.shape(name)[0] if name in files else table.place.shape[0]


def _why(files: AdapterFiles, draft: Draft, settings: LoraSettings) -> str:
    """Why the first tensor that is left over has no place."""
    if not files.left:
        return ""
    first = next(iter(files.plain_names), "")
    if not first:
        return f"`{min(files.left)}` stands there under another name too"
    module, _, part = first.rpartition(".lora_")
    if not part:
        return f"`{first}` is not a LoRA matrix of a linear"
    if module not in draft.linears:
        near = [known for known in draft.linears if known.endswith(module.rsplit(".", 1)[-1])]
        return f"the base has no linear `{module}`" + (f"; it has `{near[0]}`" if near else "")
    return f"the adapter's configuration does not target `{module}`: {settings.targeted}"
