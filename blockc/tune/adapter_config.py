"""``adapter_config.json`` of PEFT, field by field: applied, without effect on inference, or refused (BC207, BC208).

A field that is not in the table is refused unless its value is neutral: a field dropped in silence is a wrong scale
or a missing term. Names and meanings as in PEFT 0.21's ``LoraConfig``.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockc.diag import Diagnostics, Span

# What inference does not read: training settings, provenance, sharding of the training job.
WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "velora_config", "monteclora_config", "runtime_config", "qalora_group_size",
    "fan_in_fan_out",
}  # fmt: skip
_APPLIED = {
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "use_rslora", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights", "use_dora", "lora_bias",
    "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
}  # fmt: skip
_BIASES = ("none", "all", "lora_only")
# These initialisations leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, and those of tomorrow)
# subtract the initial adapter from it: the base on disk is then not the base in use.
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
_CONVERT_HELP = "convert it with PEFT's `path_initial_model_for_weight_conversion` when saving, or merge it"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """What of a LoRA configuration matters for inference."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    target_modules: tuple[str, ...] | str
    exclude_modules: tuple[str, ...] | str
    layers_to_transform: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    bias: str = "none"
    dora: bool = False
    lora_bias: bool = False
    modules_to_save: tuple[str, ...] = ()
    trainable_tokens: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    ensure_weight_tying: bool = False

    def rank_of(self, module: str) -> int:
        """Rank of a module: the first pattern that matches its path, else the common rank."""
        return self.rank_pattern.get(_pattern_of(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA (arXiv 2312.03732)."""
        alpha = self.alpha_pattern.get(_pattern_of(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether the configuration adapts the module at this path."""
        if matches(self.exclude_modules, module):
            return False
        if not matches(self.target_modules, module):
            return False
        if self.layers_to_transform is None or isinstance(self.target_modules, str) or module in self.target_modules:
            return True  # PEFT asks for the layer only where a name is a part of the path
        patterns = self.layers_pattern or (r"[^.]*",)
        for pattern in patterns:
            if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
                return int(match[1]) in self.layers_to_transform
        return False


def read_lora_settings(config: Mapping[str, Any], *, written: str, diags: Diagnostics, at: Span) -> LoraSettings | None:
    """Understand a configuration in full, or say what is not understood and return None."""
    kind = config.get("peft_type")
    if kind != "LORA":
        diags.report(
            "BC208", f"{written} is a fine-tune of the kind {str(kind)[:40]!r}", at=at,
            help="merge it into a full checkpoint with PEFT; `blockc rule BC208` lists what is served",
        )  # fmt: skip
        return None
    refused = _refusals(config)
    for field, value, why in refused:
        diags.report(
            "BC207", f"`{field} = {short(value)}` of {written} is not supported", at=at, notes=(why,),
            help=_CONVERT_HELP if field == "init_lora_weights" else "train without it, or merge the adapter with PEFT",
        )  # fmt: skip
    malformed = _malformed(config)
    for field, wanted in malformed:
        diags.report(
            "BC207", f"`{field} = {short(config.get(field))}` of {written} is not {wanted}", at=at,
            help="save the adapter again with PEFT",
        )  # fmt: skip
    if refused or malformed:
        return None
    layers = config.get("layers_to_transform")
    pattern = config.get("layers_pattern")
    return LoraSettings(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern={key: float(value) for key, value in (config.get("alpha_pattern") or {}).items()},
        rslora=bool(config.get("use_rslora")),
        target_modules=names_of(config["target_modules"]),
        exclude_modules=names_of(config.get("exclude_modules") or ()),
        layers_to_transform=None if layers in (None, []) else tuple([layers] if isinstance(layers, int) else layers),
        layers_pattern=() if not pattern else tuple([pattern] if isinstance(pattern, str) else pattern),
        bias=config.get("bias") or "none",
        dora=bool(config.get("use_dora")),
        lora_bias=bool(config.get("lora_bias")),
        modules_to_save=tuple(config.get("modules_to_save") or ()),
        trainable_tokens=token_indices(config.get("trainable_token_indices")),
        ensure_weight_tying=bool(config.get("ensure_weight_tying")),
    )


def _refusals(config: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    for field, value in sorted(config.items()):
        if field in WITHOUT_EFFECT:
            continue
        if field == "init_lora_weights":
            if value is not None and not isinstance(value, bool) and value not in _KEEPS_BASE:
                found.append((field, value, "this initialisation changes the base model's weights, or is unknown"))
        elif field == "bias":
            if value not in (None, *_BIASES):
                found.append((field, value, "PEFT knows none, all and lora_only"))
        elif field not in _APPLIED and not is_neutral(value):
            found.append((field, value, "it changes the result and is not understood"))
    if isinstance(config.get("target_modules"), str):  # PEFT refuses both; neither is read beside a pattern
        why = "it has no meaning where `target_modules` is a pattern"
        fields = [field for field in ("layers_to_transform", "layers_pattern") if config.get(field) is not None]
        found += [(field, config[field], why) for field in fields]
    elif config.get("layers_pattern") and config.get("layers_to_transform") is None:
        found.append(("layers_pattern", config["layers_pattern"], "it has no meaning without `layers_to_transform`"))
    return found


def token_indices(value: Any) -> dict[str, tuple[int, ...]]:
    """`trainable_token_indices` by module; "" is the table of the input. Raises ValueError."""
    if not value:
        return {}
    named = value if isinstance(value, dict) else {"": value}
    for rows in named.values():
        if not isinstance(rows, list) or not all(_is_int(row) and row >= 0 for row in rows) or len({*rows}) < len(rows):
            raise ValueError
    return {str(name): tuple(rows) for name, rows in named.items()}


def is_neutral(value: Any) -> bool:
    """Whether a field is switched off. An empty mapping is not: as a variant's settings it means all defaults."""
    return value is None or value is False or value == []


def _malformed(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if not _is_int(config.get("r")) or config["r"] < 1:
        found.append(("r", "a positive integer"))
    if not _is_number(config.get("lora_alpha")):
        found.append(("lora_alpha", "a number"))
    targets = config.get("target_modules")
    if not targets or not (isinstance(targets, str) or _all_str(targets)):
        found.append(("target_modules", "a list of module names or a pattern"))
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if not isinstance(ranks, dict) or not all(_is_int(value) and value > 0 for value in ranks.values()):
        found.append(("rank_pattern", "a mapping to positive integers"))
    if not isinstance(alphas, dict) or not all(_is_number(value) for value in alphas.values()):
        found.append(("alpha_pattern", "a mapping to numbers"))
    layers = config.get("layers_to_transform")
    if layers is not None and not _is_int(layers) and not (isinstance(layers, list) and all(map(_is_int, layers))):
        found.append(("layers_to_transform", "an integer or a list of integers"))
    saved = config.get("modules_to_save")
    if saved and not _all_str(saved):
        found.append(("modules_to_save", "a list of module names"))
    try:
        token_indices(config.get("trainable_token_indices"))
    except ValueError:
        found.append(("trainable_token_indices", "a list of token ids, each once, or one for each module"))
    exclude = config.get("exclude_modules")
    if exclude and not (isinstance(exclude, str) or _all_str(exclude)):
        found.append(("exclude_modules", "a list of module names or a pattern"))
    pattern = config.get("layers_pattern")
    if pattern and not (isinstance(pattern, str) or _all_str(pattern)):
        found.append(("layers_pattern", "a name or a list of names"))
    for field in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        if field not in {name for name, _ in found} and not _compiles(config.get(field)):
            found.append((field, "a valid regular expression"))
    return found


def _pattern_of(patterns: Mapping[str, Any], module: str) -> str:
    """PEFT's rule: the first key that matches the end of the path."""
    for key in patterns:
        if re.match(rf"(.*\.)?({key})$", module):
            return key
    return module


def matches(names: tuple[str, ...] | str, module: str) -> bool:
    """Whether a path is named by a list (whole, or its end) or by a pattern (whole), as PEFT matches them."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def names_of(value: Any) -> tuple[str, ...] | str:
    """A list of names, or a pattern."""
    if value == "all-linear":  # PEFT resolves it when it saves; older files keep the word. The head is left out.
        return r"(?!(.*\.)?lm_head$).*"
    return value if isinstance(value, str) else tuple(value)


def _compiles(value: Any) -> bool:
    patterns = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
    try:
        for pattern in patterns:
            re.compile(rf"(?:^|.*?\.){pattern}\.(\d+)\.")
    except (re.error, RecursionError):
        return False
    return True


def _all_str(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def short(value: Any) -> str:
    """A value in few characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
