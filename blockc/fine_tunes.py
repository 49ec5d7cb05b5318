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

# Types that PEFT merges into the weights, and what each is. All were tried (`tests/numeric/test_merged.py`).
MERGED = {
    "ADALORA": "LoRA with ranks chosen while training",
    "BOFT": "butterfly factors of an orthogonal matrix",
    "C3A": "circular convolution",
    "DEFT": "projections that remove and inject",
    "DELORA": "LoRA with a bounded norm",
    "FOURIERFT": "coefficients of a discrete Fourier transform",
    "FROD": "rotations from shared factors",
    "GLORA": "scales and shifts of weights and biases",
    "GRALORA": "LoRA by sub-blocks",
    "HIRA": "an elementwise product of the weight and a matrix of low rank",
    "HRA": "Householder reflections",
    "LOHA": "an elementwise product of two matrices of low rank",
    "LOKR": "a Kronecker product",
    "MISS": "one small matrix, repeated",
    "OFT": "an orthogonal matrix by blocks",
    "OSF": "a part of the weight's own singular directions",
    "PEANUT": "a small network over the weights",
    "PSOFT": "an orthogonal matrix in the principal subspace",
    "PVERA": "VeRA with a distribution, its mean at inference",
    "RANDLORA": "a sum of random matrices of low rank",
    "ROAD": "rotations of pairs of outputs",
    "SHIRA": "single values of the weight",
    "SUPERTUNING": "single values in shared factors",
    "TINYLORA": "very few values in frozen factors",
    "UNILORA": "one vector projected to all matrices",
    "VBLORA": "vectors from a shared bank",
    "WAVEFT": "coefficients of a wavelet transform",
}
# Types that are neither served beside shared weights nor merged.
REFUSED = {
    "ADAMSS": "PEFT needs scikit-learn to make one, and it has not been tried",
    "ADAPTION_PROMPT": "it changes attention by gated prompts of its own",
    "BEFT": "PEFT merges it into some biases and not into others",
    "CARTRIDGE": "a trained cache that PEFT cannot merge",
    "CPT": "virtual tokens that depend on the task's own examples",
    "LILY": "its matrices are chosen by what they read",
    "MULTITASK_PROMPT_TUNING": "each request would have to name a task",
    "POLY": "each request would have to name a task",
    "SHADOW": "a second network beside the first",
    "XLORA": "its adapters are mixed by what they read",
}


def why_refused(peft_type: str) -> str:
    """Why a type of PEFT's is refused, in words that follow its name."""
    return REFUSED.get(peft_type, "which has not been tried with this version")
