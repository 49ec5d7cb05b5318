"""What instances and links are expected to take: seconds, as somebody else has fitted them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainPrices:
    """A chain on an instance. ``set_up_s``: of its own, once a step with rows of it. ``prompt_s``: a prompt token.

    ``row_s``: a decode row. ``kv_bytes``: of one token's keys and values, which travel when they are handed over.
    """

    segments: tuple[int, ...]
    set_up_s: float
    prompt_s: float
    row_s: float
    kv_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancePrices:
    """``step_s``: every step. ``segment_s``: a launch of each segment, however few rows pass it. ``chains``: by index.

    ``places``: requests that run at once; more wait. ``cache_tokens``: how many tokens' KV it can hold.
    """

    step_s: float
    segment_s: tuple[float, ...]
    chains: Mapping[int, ChainPrices]
    places: int
    cache_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """From one instance to another, one message after the other."""

    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        """Raise ValueError for what is no link."""
        if not (self.bytes_per_s > 0 and self.latency_s >= 0):
            raise ValueError(f"not a link: {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """``nodes``: of each instance. None: KV does not travel that way."""

    nodes: tuple[str, ...]
    within: Link | None = None
    between: Link | None = None

    def link(self, source: int, target: int) -> Link | None:
        """How to get from one instance to another."""
        return self.within if self.nodes[source] == self.nodes[target] else self.between
