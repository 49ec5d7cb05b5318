"""Texts that can never fit are refused by their length, and none that could fit is."""

from __future__ import annotations

import asyncio
import unicodedata
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from blockc_runtime.server.auth import Caller
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.errors import ApiError
from blockc_runtime.server.generation import chat_generation, completion_generation
from blockc_runtime.server.schemas import ChatBody, CompletionBody
from blockc_runtime.token_lengths import most_characters
from tests.runtime.server import world

# Letters, marks that compose with what stands before them (a letter with three of them is one character), and blanks.
LETTERS = "aeth \n\u0345\u0313\u0301\u03b1狐🦊\u1100\u1161\u11a8\ufb01\x00"
TEXTS = st.text(st.sampled_from(LETTERS) | st.characters(exclude_categories=["Cs"]), max_size=60)


@cache
def tokenizer(kind: str) -> Tokenizer:
    made = Tokenizer.from_str(world.byte_fallback_tokenizer() if kind == "fallback" else world.byte_level_tokenizer())
    if kind in ("NFC", "NFKC"):
        made.normalizer = getattr(normalizers, kind)()
    if kind == "replaced":
        made.normalizer = normalizers.Sequence([normalizers.Replace("aeth", "t"), normalizers.NFC()])
    if kind == "split":
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\s+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return made


@pytest.mark.parametrize("kind", ["level", "fallback", "NFC", "NFKC", "replaced", "split"])
@given(text=TEXTS)
def test_no_token_stands_for_more(kind: str, text: str) -> None:
    own = tokenizer(kind)
    bound = most_characters(own)
    assert bound is not None
    assert len(text) <= bound * len(own.encode(text, add_special_tokens=False).ids)


def test_the_shortening_of_composition_is_known() -> None:
    """The most code points of any character's canonical decomposition: what `NFC` makes one of."""
    assert max(len(unicodedata.normalize("NFD", chr(code))) for code in range(0x110000)) == 4


def unknown_words() -> Tokenizer:
    return Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))


def dropped_bytes() -> Tokenizer:
    made = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    return made


def changed(change) -> Tokenizer:
    made = Tokenizer.from_str(world.byte_level_tokenizer())
    change(made)
    return made


@pytest.mark.parametrize(
    "made",
    [
        unknown_words(),
        dropped_bytes(),
        changed(lambda own: own.add_special_tokens([AddedToken("<mask>", lstrip=True)])),
        changed(lambda own: setattr(own, "normalizer", normalizers.Strip())),
        changed(lambda own: setattr(own, "normalizer", normalizers.Replace(Regex(" +"), " "))),
        changed(lambda own: setattr(own, "normalizer", normalizers.Replace("a", ""))),
        changed(lambda own: setattr(own, "normalizer", normalizers.StripAccents())),
        changed(
            lambda own: setattr(
                own,
                "pre_tokenizer",
                pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()]),
            )
        ),
    ],
    ids=["unknown words", "unknown bytes", "blanks beside", "stripped", "runs", "removed", "accents", "blanks"],
)
def test_where_texts_lose_something_there_is_no_bound(made: Tokenizer) -> None:
    assert most_characters(made) is None


def test_what_cannot_fit_is_refused_before_it_is_tokenised(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch):
    app = catalogue.find("acme/chat", Caller(tenant=None))
    assert app is not None
    bound = most_characters(world.tokenizer())
    assert bound is not None

    def never(*_, **__):
        raise AssertionError("a text that can never fit was tokenised")

    with monkeypatch.context() as patched:
        patched.setattr(type(app.text), "encode", never)
        long = "x" * (bound * app.max_model_len + 1)
        for work, param in (
            (completion_generation(CompletionBody(model="acme/chat", prompt=["hi", long]), app), "prompt"),
            (
                chat_generation(
                    ChatBody.model_validate({"model": "acme/chat", "messages": [{"role": "user", "content": long}]}),
                    app,
                ),
                "messages",
            ),
        ):
            with pytest.raises(ApiError) as caught:
                asyncio.run(work)
            assert caught.value.status == 400
            assert f'"param": "{param}"' in caught.value.body().decode()
            assert "context_length_exceeded" in caught.value.body().decode()
    fits = replace(app, max_model_len=len(long) + 16)
    made = asyncio.run(completion_generation(CompletionBody(model="acme/chat", prompt=long), fits))
    assert made.prompt_tokens > app.max_model_len
