"""LoRA and its variants in PEFT's layout (arXiv 2106.09685; rsLoRA 2312.03732; DoRA 2402.09353).

Every module that the configuration targets must have its tensors, and every tensor must land at a site of the base.
DoRA's magnitude becomes a scale of the output: ``s = m / ||W + scale B A||`` over each row, with W as the fine-tunes
below leave it; the base's bias is not scaled.
"""

from __future__ import annotations

import torch

from blockc.ir import Term, low_rank, term
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.adapter_config import LoraSettings, read_lora_settings
from blockc.tune.draft import Draft, Located
from blockc.tune.kinds import saved, vocabulary

# Of tables that are LoRA's targets PEFT ties only those of these names to heads.
_KNOWN_TABLES = ("embed_tokens", "lm_head")
_LARGEST = float(torch.finfo(torch.float32).max)  # scales are applied in float32


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    settings = read_lora_settings(files.config, written=files.written, diags=files.diags, at=files.at)
    if settings is None:
        return None
    draft = Draft(files)
    vocabulary.read(
        files, draft, settings.modules_to_save, tying=settings.ensure_weight_tying, rows=settings.trainable_tokens
    )
    saved.biases(files, draft, settings)
    wanted = [module for module in draft.linears if _targets(files, draft, settings, module)]
    for module in wanted:
        _linear(files, draft, settings, module)
    looked_up = [module for module in draft.tables if settings.targets(module)]
    for module in looked_up:
        draft.add(draft.tables[module].site, *_table(files, settings, module, draft.tables[module]))
    if not wanted and not looked_up:
        files.diags.report(
            "BC211", f"the configuration of {files.written} targets no linear of its base", at=files.at,
            notes=(f"target_modules = {settings.targeted}",),
            help="check which base the adapter was made for",
        )  # fmt: skip
    saved.modules(files, draft, settings.modules_to_save)
    return draft.finish(_why(files, draft, settings))


def _targets(files: AdapterFiles, draft: Draft, settings: LoraSettings, module: str) -> bool:
    """PEFT puts the adapter of a table at a tied head as well if `ensure_weight_tying` is set.

    It does so for tables of names that it knows; under another name it saves that adapter and does not load it.
    """
    follows = settings.ensure_weight_tying and any(
        settings.targets(table) and table.rpartition(".")[2] in _KNOWN_TABLES for table in draft.tied(module)
    )
    return settings.targets(module) or (follows and f"{module}.lora_A.weight" in files)


def _linear(files: AdapterFiles, draft: Draft, settings: LoraSettings, module: str) -> None:
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
    whole = draft.bias(module)
    if magnitude is not None:
        draft.add(linear.site, *_dora(files, module, draft.matrix(module), a, b, scale, magnitude))
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
    module: str,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    magnitude: torch.Tensor,
) -> list[Term]:
    norm = torch.linalg.vector_norm(weight + scale * (b.float() @ a.float()), dim=1)
    factor = magnitude.float() / norm
    if not torch.isfinite(factor).all():
        files.misfit(f"a row of {module} has no direction that DoRA could scale")
        return []
    return [
        term("out_scale", {"value": files.store(factor.to(files.dtype))}),
        low_rank(files.store(a), files.store((factor[:, None] * b.float()).to(files.dtype)), scale),
    ]


def _table(files: AdapterFiles, settings: LoraSettings, module: str, table: Located) -> list[Term]:
    rank, scale = settings.rank_of(module), settings.scale_of(module)
    height, width = table.place.shape
    a = files.take(f"{module}.lora_embedding_A", (rank, height))
    b = files.take(f"{module}.lora_embedding_B", (width, rank))
    if settings.dora:
        files.misfit(f"DoRA on the table {module} is not supported")
    if a is None or b is None:
        return []
    return [low_rank(files.store(a), files.store(b), scale)]


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
