"""Readers of adapters, by the type that PEFT writes into their configuration, or by kind where PEFT has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from blockc.fine_tunes import BIAS, BOTTLENECK, MERGED
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.kinds import bottleneck, ia3, lora, merged, norms, prefix, prompt, tokens, vectors, vera

# What the fine-tune adds to the chain that the files have as parent; None where something is wrong and reported.
Reader = Callable[[AdapterFiles], Tuned | None]

KINDS: Mapping[str, Reader] = MappingProxyType({
    "IA3": ia3.read,
    "LN_TUNING": norms.read,
    "LORA": lora.read,
    "PREFIX_TUNING": prefix.read,
    "PROMPT_TUNING": prompt.read,
    "P_TUNING": prompt.read,
    "TRAINABLE_TOKENS": tokens.read,
    "VERA": vera.read,
    **dict.fromkeys(MERGED, merged.read),
})  # fmt: skip
READERS: Mapping[str, Reader] = MappingProxyType({
    BIAS: vectors.read,
    BOTTLENECK: bottleneck.read,
})  # fmt: skip
