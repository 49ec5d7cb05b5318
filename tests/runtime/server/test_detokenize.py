"""Pieces of text add up to the whole, however tokens and bytes are cut."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from blockc_runtime.server.detokenize import Vocabulary
from tests.runtime.server import world


@cache
def byte_level() -> tuple[Tokenizer, Vocabulary]:
    tokenizer = world.tokenizer()
    tokenizer.add_tokens(["→odd→"])
    tokenizer.add_special_tokens([AddedToken("<hidden>", special=True)])
    return tokenizer, Vocabulary(tokenizer)


@cache
def confusing() -> tuple[Tokenizer, Vocabulary]:
    """An added token of characters that stand for bytes: decoders take it for those."""
    tokenizer = Tokenizer.from_str(byte_level()[0].to_str())
    tokenizer.add_tokens(["é"])
    return tokenizer, Vocabulary(tokenizer)


@cache
def byte_fallback() -> tuple[Tokenizer, Vocabulary]:
    tokenizer = Tokenizer.from_str(world.byte_fallback_tokenizer())
    return tokenizer, Vocabulary(tokenizer)


def feed(vocabulary: Vocabulary, tokens, cuts, *, skip: bool) -> str:
    state = vocabulary.detokenizer(skip_special_tokens=skip)
    text, start = "", 0
    for cut in [*sorted(cuts), len(tokens)]:
        text += state.feed(tokens[start:cut])
        start = max(start, cut)
    return text + state.finish()


cuts = st.lists(st.integers(0, 30), max_size=8)


@given(st.lists(st.integers(0, 410), max_size=30), cuts, st.booleans())
def test_byte_level_equals_the_whole(tokens, cuts, skip):
    tokenizer, vocabulary = confusing()
    expected = tokenizer.decode(tokens, skip_special_tokens=skip)
    assert feed(vocabulary, tokens, cuts, skip=skip) == expected


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), cuts)
def test_byte_level_gives_any_text_back(text, cuts):
    tokenizer, vocabulary = byte_level()
    assert feed(vocabulary, tokenizer.encode(text).ids, cuts, skip=False) == text


@given(st.text(st.sampled_from("the azé 🦊狐\u0301ü"), max_size=20), cuts, st.booleans())
def test_byte_fallback_equals_the_whole(text, cuts, skip):
    tokenizer, vocabulary = byte_fallback()
    tokens = tokenizer.encode(text).ids
    expected = tokenizer.decode(tokens, skip_special_tokens=skip)
    assert feed(vocabulary, tokens, cuts, skip=skip) == expected


@given(st.lists(st.sampled_from([0, 1, 2, *range(259, 292)]), max_size=20), cuts, st.booleans())
def test_special_tokens_between_words_keep_their_blanks(tokens, cuts, skip):
    tokenizer, vocabulary = byte_fallback()
    expected = tokenizer.decode(tokens, skip_special_tokens=skip)
    assert feed(vocabulary, tokens, cuts, skip=skip) == expected


@given(st.lists(st.integers(3, 290), max_size=60))
def test_bad_bytes_lose_no_more_than_decoding_the_whole(tokens):
    tokenizer, vocabulary = byte_fallback()
    text = feed(vocabulary, tokens, range(60), skip=True)
    expected = tokenizer.decode(tokens)
    assert text.count("\ufffd") <= expected.count("\ufffd")
    assert len(text) <= len(expected)


@pytest.mark.parametrize("world_of", [byte_level, byte_fallback])
def test_no_piece_ends_inside_a_character(world_of):
    tokenizer, vocabulary = world_of()
    text = "狐狸 🦊 the"
    state = vocabulary.detokenizer(skip_special_tokens=True)
    pieces = [state.feed([token]) for token in tokenizer.encode(text).ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + state.finish() == text


def test_an_unfinished_character_shows_at_the_end():
    tokenizer, vocabulary = byte_level()
    tokens = tokenizer.encode("🦊").ids[:-1]
    state = vocabulary.detokenizer(skip_special_tokens=True)
    assert state.feed(tokens) == ""
    assert state.finish() == "\ufffd"


def test_a_run_of_garbage_does_not_grow_without_bound():
    _, vocabulary = byte_fallback()
    state = vocabulary.detokenizer(skip_special_tokens=True)
    pieces = [state.feed([3 + 0xFF]) for _ in range(1000)]
    assert len("".join(pieces)) > 900


@pytest.mark.parametrize("world_of", [byte_level, byte_fallback])
def test_bytes_of_tokens_join_to_the_text(world_of):
    tokenizer, vocabulary = world_of()
    ids = tokenizer.encode("the quick 🦊 é").ids
    joined = b"".join(vocabulary.token_bytes(token) for token in ids).decode()
    assert joined.strip() == "the quick 🦊 é"


def test_ids_without_a_token_are_empty():
    _, vocabulary = byte_level()
    assert vocabulary.token_text(100_000) == ""
    state = vocabulary.detokenizer(skip_special_tokens=True)
    assert state.feed([100_000]) + state.finish() == ""
