"""The kinds of fine-tune by the words that specs and plans use, and which of PEFT's types each is.

PEFT writes its type into `adapter_config.json` (`peft_type`). Types that are the same to whoever serves them have one
word; the others go by PEFT's own name in small letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# PEFT's type -> the word, where it is another.
_WORDS = {
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "prompt",
    "TRAINABLE_TOKENS": "tokens",
}
# Kinds that are no type of PEFT's: a whole checkpoint, AdapterHub's bottleneck adapters, biases alone (BitFit).
FULL, BOTTLENECK, BIAS = "full", "bottleneck", "bias"
# Of PEFT 0.21.
PEFT_TYPES = (
    "ADALORA", "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BOFT", "C3A", "CARTRIDGE", "CPT", "DEFT", "DELORA", "FOURIERFT",
    "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS",
    "MULTITASK_PROMPT_TUNING", "OFT", "OSF", "PEANUT", "POLY", "PREFIX_TUNING", "PROMPT_TUNING", "PSOFT", "PVERA",
    "P_TUNING", "RANDLORA", "ROAD", "SHADOW", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA",
    "VBLORA", "VERA", "WAVEFT", "XLORA",
)  # fmt: skip


def kind_of(peft_type: str) -> str:
    """The word for a type of PEFT's."""
    return _WORDS.get(peft_type, peft_type.lower())


def kind_of_adapter(config: Mapping[str, Any]) -> str:
    """The word for an adapter by its ``adapter_config.json``. AdapterHub's have a configuration inside it."""
    if "peft_type" not in config and "config" in config and "model_type" in config:
        return BOTTLENECK
    return kind_of(str(config.get("peft_type"))[:40])


KINDS = (FULL, BOTTLENECK, BIAS, *sorted({kind_of(name) for name in PEFT_TYPES}))
