"""``config.json`` -> a transformers configuration, without running code of the repository's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockc.trace.attention import UntraceableError

# Layers that attend in another way are not told apart by the arguments that reach attention.
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Sizes that are allocated or counted through before any weight is looked at. No model comes near these.
_MOST = {"num_hidden_layers": 4096, "head_dim": 1 << 16, "num_attention_heads": 1 << 16, "num_labels": 1 << 16}


def config_of(values: Mapping[str, Any]) -> Any:
    """The configuration class that ``model_type`` names. Raises :class:`UntraceableError`."""
    from transformers import CONFIG_MAPPING

    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UntraceableError(f"transformers knows no model of the type {str(model_type)[:40]!r}")
    if "configuration_files" in values:
        raise UntraceableError("its config.json names other files that replace it (`configuration_files`)")
    if model_type == "mistral" and "layer_types" in values:
        raise UntraceableError("transformers takes a Mistral with `layer_types` for another architecture, Ministral")
    for name, most in _MOST.items():
        alias = CONFIG_MAPPING[model_type].attribute_map.get(name, name)
        if any(isinstance(size, int | float) and size > most for size in (values.get(name), values.get(alias))):
            raise UntraceableError(f"its config.json gives `{alias}` as more than {most}")
    try:
        config = CONFIG_MAPPING[model_type].from_dict(dict(values))
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UntraceableError(f"its config.json is not valid: {text[:300]}") from error
    if strange := sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES):
        raise UntraceableError(f"layers of the type {strange[0]!r}")
    return config
