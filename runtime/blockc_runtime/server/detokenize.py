"""Token ids to text, a few at a time.

In: the tokens of one output, in order, in pieces of any size. Out: text, never half a character.
Invariant: the pieces joined are what the tokenizer decodes from all tokens at once. Vocabularies
with byte fallback (``<0xE2>``) give up a whole run of byte tokens for one bad byte in it, and only
once the run is over; there this holds if the bytes are UTF-8, and else what was shown stays shown.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most 4 bytes. More tokens than this without text are garbage: show it as such.
_HELD_TOKENS = 16


class Detokenizer(Protocol):
    """The state of one output."""

    def feed(self, tokens: Sequence[int]) -> str:
        """Add tokens; return the text that is complete now."""

    def finish(self) -> str:
        """Return what was still held back: a character that will not be completed any more."""


class Vocabulary:
    """What detokenisation needs of a tokenizer; shared by all requests of a chain.

    ``special`` are the ids that ``skip_special_tokens`` hides.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(id_ for id_, token in added.items() if token.special)
        self.size = tokenizer.get_vocab_size(with_added_tokens=True)
        self._byte_level = _is_byte_level(tokenizer)
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str] = {}
        self._alone: dict[int, str] = {}

    def detokenizer(self, *, skip_special_tokens: bool, shown: Sequence[str] = ()) -> Detokenizer:
        """Return a fresh state. ``shown``: special tokens that are text all the same."""
        hidden = self.special if skip_special_tokens else frozenset[int]()
        if shown:
            hidden = hidden.difference(self._tokenizer.token_to_id(token) for token in shown)
        if self._byte_level:
            return _ByteLevelDetokenizer(self, hidden)
        return _WindowDetokenizer(self, hidden)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for, also if they are part of a character."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._decode_bytes(token)
        return known

    def token_text(self, token: int) -> str:
        """Return one token as text by itself; bytes that are no text become U+FFFD."""
        known = self._texts.get(token)
        if known is None:
            known = self._texts[token] = self.token_bytes(token).decode("utf-8", "replace")
        return known

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode all of ``tokens``, special ones included."""
        return self._tokenizer.decode(tokens, skip_special_tokens=False)

    def text(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Decode all of ``tokens``, many of them beside other threads: only batches release the interpreter lock."""
        (text,) = self._tokenizer.decode_batch([tokens], skip_special_tokens=skip_special_tokens)
        return str(text)

    def decode_alone(self, token: int) -> str:
        """Decode one token as the first one of a text."""
        known = self._alone.get(token)
        if known is None:
            known = self._alone[token] = self.decode([token])
        return known

    def _decode_bytes(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token)
        if piece is None:  # a row of the embedding that no token uses
            return b""
        if self._byte_level:
            return _byte_level_bytes(piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes((int(piece[3:5], 16),))
        # Decoded behind itself, for a decoder may strip the blank in front of the first token.
        alone = self.decode_alone(token)
        twice = self.decode([token, token])
        return twice[len(alone) :].encode()


class _ByteLevelDetokenizer:
    """GPT-2's alphabet: every token is bytes, so a running UTF-8 decoder is exact and cheap."""

    __slots__ = ("_hidden", "_token_bytes", "_utf8")

    def __init__(self, vocabulary: Vocabulary, hidden: frozenset[int]) -> None:
        self._token_bytes = vocabulary.token_bytes
        self._hidden = hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, tokens: Sequence[int]) -> str:
        hidden, token_bytes = self._hidden, self._token_bytes
        shown = [token_bytes(token) for token in tokens if token not in hidden]
        return self._utf8.decode(b"".join(shown))

    def finish(self) -> str:
        return self._utf8.decode(b"", True)


class _WindowDetokenizer:
    """Any decoder: the text of a token is what it adds behind the tokens just before it.

    The window runs from the tokens whose text was last returned, so its length is bounded by the
    longest run of tokens that form no text by themselves.
    """

    __slots__ = ("_decode", "_decode_alone", "_hidden", "_shown", "_shown_text", "_window")

    def __init__(self, vocabulary: Vocabulary, hidden: frozenset[int]) -> None:
        self._decode, self._decode_alone = vocabulary.decode, vocabulary.decode_alone
        self._hidden = hidden
        self._window: list[int] = []
        self._shown = 0  # how many tokens of the window have been returned as text
        self._shown_text = ""

    def feed(self, tokens: Sequence[int]) -> str:
        return "".join([self._feed_one(token) for token in tokens if token not in self._hidden])

    def _feed_one(self, token: int) -> str:
        self._window.append(token)
        text = self._decode(self._window)
        if len(text) <= len(self._shown_text):
            return ""
        # U+FFFD at the end: bytes of a character whose rest may still come.
        if text.endswith(_REPLACEMENT) and len(self._window) - self._shown < _HELD_TOKENS:
            return ""
        added = text[len(self._shown_text) :]
        behind = self._window[self._shown :]
        alone = self._decode_alone(behind[0]) if len(behind) == 1 else self._decode(behind)
        if alone:  # else the next token would be taken for the first one of the text
            self._window, text = behind, alone
        self._shown, self._shown_text = len(self._window), text
        return added

    def finish(self) -> str:
        rest = self._decode(self._window)[len(self._shown_text) :]
        self._window, self._shown, self._shown_text = [], 0, ""
        return rest


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    decoder = tokenizer.decoder
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    if state.get("type") == "Sequence" and len(state.get("decoders", ())) == 1:
        state = state["decoders"][0]
    return bool(state.get("type") == "ByteLevel")


def _byte_level_alphabet() -> dict[str, int]:
    """Map GPT-2's stand-ins to bytes: printable Latin-1 is itself, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    """Return a token's bytes. An added token with other characters stands for its own UTF-8."""
    try:
        return bytes([_BYTE_OF[character] for character in piece])
    except KeyError:
        return piece.encode()
