"""One graph of all models: shared blocks, segments, KV groups and domains."""

from __future__ import annotations

from blockc.unify.domains import kv_domains
from blockc.unify.segments import Cut, Segment, find_segments
from blockc.unify.unify import KvGroup, UnifiedGraph, unify

__all__ = ["Cut", "KvGroup", "Segment", "UnifiedGraph", "find_segments", "kv_domains", "unify"]
