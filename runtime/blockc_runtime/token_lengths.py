"""How many characters a token can stand for, where that is known: texts that can never fit need not be tokenised.

In: a tokenizer. Out: a bound, or None. Invariant: a text of more than ``n * bound`` characters has more than ``n``
tokens. That holds where nothing is dropped on the way: byte-level BPE with a token for every byte, and BPE whose
unknown characters become bytes, behind normalisers that shorten a text by a known factor at most. Other tokenizers may
make one token of any number of characters (a word that is unknown, blanks that are removed), and get no bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

# A composed character stands for four at most (Unicode's canonical decompositions). None of the others drops anything.
_SHRINKING = {"NFC": 4, "NFKC": 4, "NFD": 1, "NFKD": 1, "Lowercase": 1, "Prepend": 1, "ByteLevel": 1}
_KEEPING = {"ByteLevel", "Metaspace", "Digits"}


def most_characters(tokenizer: Tokenizer) -> int | None:
    """The most characters of a text that one token stands for; None where there is no bound."""
    parts = json.loads(tokenizer.to_str())
    shrinking = _normalisers(parts.get("normalizer"))
    if shrinking is None or not _keeps_all(parts.get("pre_tokenizer")) or not _knows_all(parts):
        return None
    if any(token["lstrip"] or token["rstrip"] for token in parts.get("added_tokens") or ()):
        return None  # these take the blanks beside them, however many
    longest = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=0)
    return longest * shrinking or None


def _members(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[name]) if part.get("type") == "Sequence" else [part]


def _normalisers(part: Mapping[str, Any] | None) -> int | None:
    """By how much they shorten a text at most; None: nobody knows."""
    factor = 1
    for own in _members(part, "normalizers"):
        pattern, content = own.get("pattern"), own.get("content")
        if own.get("type") == "Replace" and isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            if not content:
                return None
            factor *= max(1, -(-len(pattern["String"]) // len(content)))
        elif own.get("type") in _SHRINKING:
            factor *= _SHRINKING[own["type"]]
        else:
            return None
    return factor


def _keeps_all(part: Mapping[str, Any] | None) -> bool:
    return all(
        own.get("type") in _KEEPING
        or (own.get("type") in ("Split", "Punctuation") and own.get("behavior") != "Removed")
        for own in _members(part, "pretokenizers")
    )


def _knows_all(parts: Mapping[str, Any]) -> bool:
    """Whether each character is in some token, or its bytes are."""
    model = parts["model"]
    vocab = model.get("vocab")
    if model.get("type") != "BPE" or not isinstance(vocab, dict):
        return False
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    pieces = (*_members(parts.get("normalizer"), "normalizers"), *_members(parts.get("pre_tokenizer"), "pretokenizers"))
    return any(own.get("type") == "ByteLevel" for own in pieces) and all(
        piece in vocab for piece in pre_tokenizers.ByteLevel.alphabet()
    )
