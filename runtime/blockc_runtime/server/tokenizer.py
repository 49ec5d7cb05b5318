"""A chain's text side: tokenizer, chat template and detokenisation, from the assets in the zoo.

In: the bytes of ``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja``.
Out: a `ChainText`. Invariant: token ids are those that transformers' fast tokenizer of the same
files gives, with and without special tokens; nothing is truncated or padded. What is put around a
text is up to ``tokenizer.json`` alone: beside it, transformers ignores ``add_bos_token``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from tokenizers import AddedToken, Tokenizer

from blockc.diag import DiagnosticError, Diagnostics
from blockc_runtime.server.chat_template import ChatTemplate, ChatTemplateError
from blockc_runtime.server.detokenize import Vocabulary

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
TEXT_ASSETS = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, SPECIAL_TOKENS_MAP)

_NAMED_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class _UnusableError(Exception):
    """An asset that cannot be understood, in one sentence."""


class ChainText:
    """Turns text into tokens and back. Shared by all apps whose assets are equal."""

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None, vocabulary: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template
        self.vocabulary = vocabulary

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of ``text``."""
        # As a batch of one, because only batches release the interpreter lock.
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded[0].ids
        return ids


def load_chain_text(assets: Mapping[str, bytes], *, of: str = "a chain") -> ChainText:
    """Build a `ChainText`. Raises `DiagnosticError` (BC903) for assets it cannot understand; ``of`` says whose."""
    try:
        return _load(assets)
    except _UnusableError as error:
        problems = Diagnostics()
        problems.report("BC903", f"{of}: {error}", help="correct the model's files and compile again")
        raise DiagnosticError(problems) from None


def _load(assets: Mapping[str, bytes]) -> ChainText:
    if TOKENIZER not in assets:
        _refuse(f"there is no {TOKENIZER}")
    try:
        tokenizer = Tokenizer.from_str(assets[TOKENIZER].decode())
    except Exception as error:  # tokenizers raises bare Exception
        _refuse(f"{TOKENIZER} cannot be read: {error}")
    config = _configuration(assets)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    named = _named_special_tokens(config)
    _add_tokens(tokenizer, config, named)
    return ChainText(tokenizer, _chat_template(assets, config, named), Vocabulary(tokenizer))


def _configuration(assets: Mapping[str, bytes]) -> dict[str, Any]:
    config = _json_object(assets, TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in config:  # files of the time before special tokens moved here
        config = {**_json_object(assets, SPECIAL_TOKENS_MAP), **config}
    return config


def _json_object(assets: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in assets:
        return {}
    try:
        value = json.loads(assets[name])
    except ValueError as error:
        _refuse(f"{name} is not JSON: {error}")
    if not isinstance(value, dict):
        _refuse(f"{name} is not a JSON object")
    return value


def _named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    contents = ((name, _content(config.get(name))) for name in _NAMED_SPECIAL)
    return {name: content for name, content in contents if content is not None}


def _content(token: Any) -> str | None:
    """Return a token given as a string, or as an object with its ``content``."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _add_tokens(tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Add what the configuration knows and ``tokenizer.json`` does not, in order of ids."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokenizer.add_tokens(
        [
            AddedToken(token["content"], **{flag: bool(token.get(flag, False)) for flag in flags})
            for _, token in sorted(listed.items(), key=lambda item: int(item[0]))
            if isinstance(token, dict) and token["content"] not in known
        ]
    )
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    candidates = [*named.values(), *(extra.values() if isinstance(extra, dict) else extra)]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [content for token in candidates if (content := _content(token)) is not None]
    tokenizer.add_special_tokens(
        [
            AddedToken(content, special=True, normalized=False)
            for content in dict.fromkeys(missing)
            if content not in added
        ]
    )


def _chat_template(
    assets: Mapping[str, bytes], config: Mapping[str, Any], named: Mapping[str, str]
) -> ChatTemplate | None:
    """Return the template: its own file, else the one in the configuration, else none."""
    source = config.get("chat_template")
    if CHAT_TEMPLATE in assets:
        source = assets[CHAT_TEMPLATE].decode("utf-8", "replace")
    if isinstance(source, list):  # several named ones
        templates = {entry.get("name"): entry.get("template") for entry in source}
        source = templates.get("default")
    if not isinstance(source, str):
        return None
    try:
        return ChatTemplate(source, named)
    except ChatTemplateError as error:
        _refuse(f"the chat template cannot be compiled: {error}")


def _refuse(message: str) -> NoReturn:
    raise _UnusableError(message)
