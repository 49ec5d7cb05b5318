"""Who has the KV of what: for each instance the beginnings of prompts that it has computed, as far as its cache goes.

In: digests of beginnings. Out: how much of a prompt an instance should find. This is what the router believes: a page
may have been evicted meanwhile, and then the instance computes it again. Invariant: an instance is credited with no
more tokens than its cache holds; those that were asked for longest ago are forgotten first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from blockc_runtime.kv.prefix import Prefix

# Of the beginnings that are told apart: a few pages. Shorter ones are worth no message, and more digests cost time.
PREFIX_TOKENS: Final = 128
Key = bytes


def prefix_keys(prefix: Prefix, domains: Sequence[str]) -> tuple[Key, ...]:
    """A key for each whole `PREFIX_TOKENS` tokens of a prompt but its last token, which is always computed.

    Equal keys: equal tokens up to there, one isolation group, and chains that compute the same KV from them.
    """
    count = max(0, len(prefix.tokens) - 1) // PREFIX_TOKENS
    own = hashlib.sha256("\0".join(domains).encode()).digest()[:8]
    return tuple([own + digest for digest in prefix.digests(PREFIX_TOKENS, count)[:count]])


class Owners:
    """Beginnings by instance."""

    def __init__(self, cache_tokens: Sequence[int]) -> None:
        self._room = tuple(tokens // PREFIX_TOKENS for tokens in cache_tokens)
        self._known: tuple[OrderedDict[Key, None], ...] = tuple(OrderedDict() for _ in cache_tokens)

    def found(self, instance: int, keys: Sequence[Key]) -> int:
        """How many of the first keys an instance has."""
        known = self._known[instance]
        for count, key in enumerate(keys):
            if key not in known:
                return count
        return len(keys)

    def note(self, instance: int, keys: Sequence[Key]) -> None:
        """An instance has these, or will have them soon."""
        known, room = self._known[instance], self._room[instance]
        for key in reversed(keys):  # a beginning is of use without its end, not the other way round
            known[key] = None
            known.move_to_end(key)
        while len(known) > room:
            known.popitem(last=False)

    def forget(self, instance: int) -> None:
        """Its memory was lost, or given to something else."""
        self._known[instance].clear()

    def count(self, instance: int) -> int:
        """Beginnings that an instance is credited with."""
        return len(self._known[instance])
