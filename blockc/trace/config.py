"""``config.json`` -> a transformers configuration, without running code of the repository's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockc.trace.attention import UntraceableError

# Layers that attend in another way are not told apart by the arguments that reach attention.
_LAYER_TYPES = {"full_attention", "sliding_attention"}


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
    try:
        config = CONFIG_MAPPING[model_type].from_dict(dict(values))
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UntraceableError(f"its config.json is not valid: {text[:300]}") from error
    if strange := sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES):
        raise UntraceableError(f"layers of the type {strange[0]!r}")
    return config
