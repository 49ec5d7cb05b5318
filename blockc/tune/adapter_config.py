"""``adapter_config.json`` of PEFT, field by field: applied, without effect on inference, or refused (BC207, BC208).

A field that is not in the table is refused unless its value is neutral: a field dropped in silence is a wrong scale
or a missing term. Names and meanings as in PEFT 0.21's ``LoraConfig``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockc.diag import Diagnostics, Span
from blockc.fine_tunes import LORA_REFUSED
from blockc.tune.patterns import MOST_PATTERNS, Keyed, Matcher, end, is_plain
from blockc.tune.targets import Targets, are_patterns, is_int, malformed, targets_of

# What inference does not read: training settings, provenance, sharding of the training job.
WITHOUT_EFFECT = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "velora_config", "monteclora_config", "runtime_config", "qalora_group_size",
    "fan_in_fan_out",
}  # fmt: skip
APPLIED = {
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "use_rslora", "layers_to_transform",
    "layers_pattern", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights", "use_dora", "lora_bias",
    "modules_to_save", "trainable_token_indices", "ensure_weight_tying",
}  # fmt: skip
NOT_UNDERSTOOD = "it changes the result and is not understood"
_BIASES = ("none", "all", "lora_only")
# These initialisations leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, and those of tomorrow)
# subtract the initial adapter from it: the base on disk is then not the base in use.
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
_SWITCHES = ("use_rslora", "use_dora", "lora_bias", "ensure_weight_tying")
_CONVERT_HELP = "convert it with PEFT's `path_initial_model_for_weight_conversion` when saving, or merge it"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """What of a LoRA configuration matters for inference."""

    rank: int
    alpha: float
    rank_pattern: Keyed
    alpha_pattern: Keyed
    rslora: bool
    targeted: Targets
    bias: str = "none"
    dora: bool = False
    lora_bias: bool = False
    modules_to_save: tuple[str, ...] = ()
    trainable_tokens: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    ensure_weight_tying: bool = False

    def rank_of(self, module: str) -> int:
        """Rank of a module: the first pattern that matches its path, else the common rank."""
        return int(self.rank_pattern.get(module, self.rank))

    def scale_of(self, module: str) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA (arXiv 2312.03732)."""
        alpha, rank = self.alpha_pattern.get(module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets(self, module: str) -> bool:
        """Whether the configuration adapts the module at this path. Raises `SlowPatternError`."""
        return module in self.targeted


def read_lora_settings(config: Mapping[str, Any], *, written: str, diags: Diagnostics, at: Span) -> LoraSettings | None:
    """Understand a configuration in full, or say what is not understood and return None. Raises `SlowPatternError`."""
    kind = config.get("peft_type")
    if kind != "LORA":
        diags.report(
            "BC208", f"{written} is a fine-tune of the kind {str(kind)[:40]!r}", at=at,
            help="merge it into a full checkpoint with PEFT; `blockc rule BC208` lists what is served",
        )  # fmt: skip
        return None
    matcher = Matcher()
    refused = _refusals(config)
    for field, value, why in refused:
        diags.report(
            "BC207", f"`{field} = {short(value)}` of {written} is not supported", at=at, notes=(why,),
            help=_CONVERT_HELP if field == "init_lora_weights" else "train without it, or merge the adapter with PEFT",
        )  # fmt: skip
    wrong = _malformed(config, matcher)
    for field, wanted in wrong:
        diags.report(
            "BC207", f"`{field} = {short(config.get(field))}` of {written} is not {wanted}", at=at,
            help="save the adapter again with PEFT",
        )  # fmt: skip
    if refused or wrong:
        return None
    return LoraSettings(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        rank_pattern=Keyed(config.get("rank_pattern") or {}, matcher),
        alpha_pattern=Keyed({key: float(value) for key, value in (config.get("alpha_pattern") or {}).items()}, matcher),
        rslora=bool(config.get("use_rslora")),
        targeted=targets_of(config, matcher),
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
        elif field not in APPLIED and not is_neutral(value):
            found.append((field, value, LORA_REFUSED.get(field, NOT_UNDERSTOOD)))
    if config.get("lora_bias") and config.get("use_dora"):
        found.append(("lora_bias", True, "PEFT knows no bias of DoRA's matrices"))
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
        if not isinstance(rows, list) or not all(is_int(row) and row >= 0 for row in rows) or len({*rows}) < len(rows):
            raise ValueError
    return {str(name): tuple(rows) for name, rows in named.items()}


def is_neutral(value: Any) -> bool:
    """Whether a field is switched off. An empty mapping is not: as a variant's settings it means all defaults."""
    return value is None or value is False or value == []


def _malformed(config: Mapping[str, Any], matcher: Matcher) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if not is_int(config.get("r")) or config["r"] < 1:
        found.append(("r", "a positive integer"))
    if not _is_number(config.get("lora_alpha")):
        found.append(("lora_alpha", "a number"))
    if not config.get("target_modules"):
        found.append(("target_modules", "a list of module names or a pattern"))
    found += [(field, "true or false") for field in _SWITCHES if not isinstance(config.get(field), bool | None)]
    for field, kind, fits in (
        ("rank_pattern", "positive integers", _is_rank),
        ("alpha_pattern", "numbers", _is_number),
    ):
        values = config.get(field) or {}
        if not isinstance(values, dict) or not all(map(fits, values.values())):
            found.append((field, f"a mapping to {kind}"))
        elif len(values) > MOST_PATTERNS:
            found.append((field, f"a mapping of at most {MOST_PATTERNS} patterns"))
        elif not are_patterns([end(key) for key in values if not is_plain(key)], matcher):
            found.append((field, "a mapping from valid regular expressions"))
    try:
        token_indices(config.get("trainable_token_indices"))
    except ValueError:
        found.append(("trainable_token_indices", "a list of token ids, each once, or one for each module"))
    return found + malformed(config, matcher)


def _is_rank(value: Any) -> bool:
    return is_int(value) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def short(value: Any) -> str:
    """A value in few characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
