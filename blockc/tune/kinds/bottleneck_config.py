"""``adapter_config.json`` of AdapterHub's `adapters` 1.x for a bottleneck, field by field.

Applied, without effect on inference, or refused (BC207, BC208), with the library's defaults for what is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockc.tune.adapter import AdapterFiles
from blockc.tune.adapter_config import NOT_UNDERSTOOD, is_neutral, short
from blockc.tune.fields import report_fields

# The library's own layers of these add to the stream as this module says. On others it hooks what it finds, and its
# hooks hand every layer the norm of the last one.
MODEL_TYPES = ("gpt2", "llama", "mistral")
_DESCRIPTIVE = {
    "config",
    "hidden_size",
    "model_type",
    "name",
    "version",
    "model_class",
    "model_name",
    "type",
    "config_id",
}
_TRAINING = {"dropout", "stochastic_depth", "init_weights", "init_weights_seed", "inv_adapter_reduction_factor"}
_DEFAULTS: Mapping[str, Any] = {
    "mh_adapter": False, "output_adapter": False, "reduction_factor": None, "non_linearity": None,
    "original_ln_before": False, "original_ln_after": True, "ln_before": False, "ln_after": False,
    "is_parallel": False, "scaling": 1.0, "residual_before_ln": True, "adapter_residual_before_ln": False,
    "leave_out": [],
}  # fmt: skip
_OFF = {
    "use_gating": "its gate averages over the whole text, later tokens included",
    "phm_layer": "its matrices are sums of Kronecker products (Compacter)",
    "inv_adapter": "an invertible adapter changes embeddings and logits too",
    "cross_adapter": "a decoder has no cross attention",
}
_FLAGS = (
    "mh_adapter", "output_adapter", "original_ln_before", "original_ln_after", "ln_before", "ln_after", "is_parallel",
    "adapter_residual_before_ln",
)  # fmt: skip
_ACTIVATIONS = {
    "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu",
    "silu": "silu", "tanh": "tanh", "sigmoid": "sigmoid", "leakyrelu": "leaky_relu",
}  # fmt: skip
# Files without a version are of the library's first years, when these words meant something else.
_OLD_WORDS = {"gelu": "gelu_new", "gelu_orig": "gelu"}
_FLAGS_MODULE = {"attention_adapters": "mh_adapter", "output_adapters": "output_adapter"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckSettings:
    """What of a configuration matters. ``scaling``: a number, or ``learned`` or ``channel`` where the file holds it."""

    name: str
    hidden_size: int
    places: frozenset[str]
    left_out: frozenset[int]
    reduction: float | Mapping[str, float]
    activation: str
    reads: str
    ln_before: bool
    ln_after: bool
    scaling: float | str

    def width(self, layer: int, module: str) -> int | None:
        """Columns of the bottleneck of a module in a layer; None if it has none."""
        if module not in self.places or layer in self.left_out:
            return None
        factor = self.reduction
        if isinstance(factor, Mapping):
            factor = factor.get(str(layer), factor.get("default", 0.0))
        return max(1, int(self.hidden_size // factor)) if factor else 0


def read_settings(files: AdapterFiles) -> BottleneckSettings | None:
    """Understand a configuration in full, or say what is not understood and return None."""
    config = files.config
    inner = config.get("config")
    reason = _other_kind(config)
    if reason is not None:
        files.diags.report(
            "BC208", f"{files.written} is an adapter of AdapterHub's that is not served: {reason}", at=files.at,
            help="bottleneck adapters on Llama, Mistral and GPT-2 are; train others with PEFT",
        )  # fmt: skip
        return None
    assert isinstance(inner, dict)
    problems = [(field, config[field], "it is not understood") for field in sorted(config.keys() - _DESCRIPTIVE)]
    problems += _problems(config, inner)
    report_fields(files, problems, "train without it")
    if problems:
        return None
    values = {**_DEFAULTS, **inner}
    reduction = values["reduction_factor"]
    return BottleneckSettings(
        name=config["name"],
        hidden_size=config["hidden_size"],
        places=frozenset(module for module, flag in _FLAGS_MODULE.items() if values[flag]),
        left_out=frozenset(values["leave_out"]),
        reduction={key: float(one) for key, one in reduction.items()} if isinstance(reduction, dict) else reduction,
        activation=_activation(config, values["non_linearity"]),
        reads="stream" if values["is_parallel"] else "sum" if values["original_ln_before"] else "sublayer",
        ln_before=values["ln_before"],
        ln_after=values["ln_after"],
        scaling=values["scaling"],
    )


def _other_kind(config: Mapping[str, Any]) -> str | None:
    inner = config.get("config")
    if not isinstance(inner, dict):
        return f"its configuration is {short(inner)}, and not written out"
    if not is_neutral(inner.get("architecture")):
        return f"its architecture is {short(inner['architecture'])}"
    if config.get("model_type") not in MODEL_TYPES:
        return f"its base is a model of the type {short(config.get('model_type'))}"
    return None


def _problems(config: Mapping[str, Any], inner: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    found = [(field, inner[field], why) for field, why in _OFF.items() if not is_neutral(inner.get(field))]
    known = {*_DEFAULTS, *_TRAINING, *_OFF, "architecture"}
    for field, value in sorted(inner.items()):
        is_of_compacter = "phm" in field or field in ("hypercomplex_nonlinearity",)
        if field not in known and not is_of_compacter and not is_neutral(value):
            found.append((field, value, NOT_UNDERSTOOD))
    values = {**_DEFAULTS, **inner}
    found += [
        (field, values[field], "it is neither true nor false") for field in _FLAGS if type(values[field]) is not bool
    ]
    if not isinstance(config.get("name"), str):
        found.append(("name", config.get("name"), "it is no name"))
    if type(config.get("hidden_size")) is not int or config["hidden_size"] < 1:
        found.append(("hidden_size", config.get("hidden_size"), "it is no size"))
    factors = values["reduction_factor"]
    factors = list(factors.values()) if isinstance(factors, dict) else [factors]
    if not factors or not all(_is_factor(factor) for factor in factors):
        found.append(("reduction_factor", values["reduction_factor"], "it is neither a number nor a number by layer"))
    left_out = values["leave_out"]
    if not isinstance(left_out, list) or not all(type(layer) is int for layer in left_out):
        found.append(("leave_out", left_out, "it is no list of layers"))
    scaling = values["scaling"]
    if type(scaling) is not float and scaling not in ("learned", "channel"):
        found.append(("scaling", scaling, "it is neither a number with a point nor `learned` nor `channel`"))
    if _activation(config, values["non_linearity"]) == "":
        found.append(("non_linearity", values["non_linearity"], f"known are {', '.join(sorted(_ACTIVATIONS))}"))
    return found or _residual_problems(values)


def _residual_problems(values: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Settings under which the stream is not added exactly once, in a decoder that normalises before its sublayers."""
    residual = values["residual_before_ln"]
    if values["is_parallel"]:
        if not values["original_ln_after"]:
            return [("original_ln_after", False, "a parallel adapter then drops the residual stream")]
        return []
    if type(residual) is not bool:
        return [("residual_before_ln", residual, "the library fails on it where norms stand before the sublayers")]
    times = values["original_ln_after"] + (values["original_ln_before"] and not residual)
    if times != 1:
        return [("original_ln_after", values["original_ln_after"], f"the residual stream is then added {times} times")]
    if values["ln_after"] and values["adapter_residual_before_ln"]:
        return [("adapter_residual_before_ln", True, "the norm after the bottleneck then has the sublayer in it")]
    return []


def _activation(config: Mapping[str, Any], written: Any) -> str:
    """Ours for the library's word; empty if there is none."""
    word = written.lower() if isinstance(written, str) else ""
    if "version" not in config:
        word = _OLD_WORDS.get(word, word)
    return _ACTIVATIONS.get(word, "")


def _is_factor(value: Any) -> bool:
    return type(value) in (int, float) and 1e-3 <= value <= 1e9
