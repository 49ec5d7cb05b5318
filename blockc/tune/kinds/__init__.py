"""Readers of adapters, by the type that PEFT writes into their configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.kinds import ia3, lora, norms, tokens, vera

# What the fine-tune adds to the chain that the files have as parent; None where something is wrong and reported.
Reader = Callable[[AdapterFiles], Tuned | None]

KINDS: Mapping[str, Reader] = MappingProxyType({
    "IA3": ia3.read,
    "LN_TUNING": norms.read,
    "LORA": lora.read,
    "TRAINABLE_TOKENS": tokens.read,
    "VERA": vera.read,
})  # fmt: skip
