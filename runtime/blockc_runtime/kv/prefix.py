"""What a page of a request holds, as a digest.

In: the isolation group and the growing token list of one request. Out: for page size p and page i, the digest of
the isolation group and of all tokens up to and including page i. Together with a KV domain this names the page's
content exactly: equal digests mean equal tokens from position 0 on, within one isolation group.
Invariant: the token list only grows, so a digest once computed stays true.
"""

from __future__ import annotations

import hashlib
import struct


class Prefix:
    """Tokens of one request so far, shared with their owner, and digests of their full pages, made on demand."""

    __slots__ = ("_chains", "_root", "tokens")

    def __init__(self, isolation_group: str, tokens: list[int]) -> None:
        self.tokens = tokens
        self._root = hashlib.sha256(b"blockc isolation group\0" + isolation_group.encode()).digest()
        self._chains: dict[int, list[bytes]] = {}

    def digests(self, page_tokens: int, pages: int) -> list[bytes]:
        """Digests of at least the first ``pages`` pages of ``page_tokens`` tokens each, all of them full."""
        chain = self._chains.setdefault(page_tokens, [])
        if len(chain) < pages:
            self._extend(chain, page_tokens, pages)
        return chain

    def _extend(self, chain: list[bytes], page_tokens: int, pages: int) -> None:
        if pages * page_tokens > len(self.tokens):
            raise ValueError(f"{pages} pages of {page_tokens} are not full: {len(self.tokens)} tokens")
        first = len(chain) * page_tokens
        # Fixed width: no two token runs share their bytes.
        run = struct.pack(f"<{pages * page_tokens - first}q", *self.tokens[first : pages * page_tokens])
        size = 8 * page_tokens
        digest = chain[-1] if chain else self._root
        for start in range(0, len(run), size):
            digest = hashlib.sha256(digest + run[start : start + size]).digest()
            chain.append(digest)
