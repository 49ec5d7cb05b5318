"""Models -> blocks, on the meta device: capture, normal form, cuts, canonical structures. No code per architecture."""

from __future__ import annotations

from blockc.trace.attention import UntraceableError
from blockc.trace.config import config_of
from blockc.trace.loading import WITH_UNUSED_HEADS, Loading, loading_of
from blockc.trace.model import TOKENS, Head, KvLayer, Pooling, Source, TracedBlock, TracedModel
from blockc.trace.trace import trace

__all__ = [
    "TOKENS",
    "WITH_UNUSED_HEADS",
    "Head",
    "KvLayer",
    "Loading",
    "Pooling",
    "Source",
    "TracedBlock",
    "TracedModel",
    "UntraceableError",
    "config_of",
    "loading_of",
    "trace",
]
