"""A chain's tokenizer from its files, for the server's texts and the engine's grammars.

In: the bytes of ``tokenizer.json`` and ``tokenizer_config.json``. Out: a `Tokenizer` with the tokens of both.
Invariant: server and engine, which both come here, have the same ids for the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"

_NAMED_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class UnusableError(Exception):
    """An asset that cannot be understood, in one sentence."""


def load_tokenizer(assets: Mapping[str, bytes]) -> Tokenizer:
    """Build the tokenizer. Raises `UnusableError`."""
    if TOKENIZER not in assets:
        raise UnusableError(f"there is no {TOKENIZER}")
    try:
        tokenizer = Tokenizer.from_str(assets[TOKENIZER].decode())
    except Exception as error:  # tokenizers raises bare Exception
        raise UnusableError(f"{TOKENIZER} cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _add_tokens(tokenizer, configuration(assets))
    return tokenizer


def configuration(assets: Mapping[str, bytes]) -> dict[str, Any]:
    """Return ``tokenizer_config.json``, as one object with what older files keep beside it. Raises `UnusableError`."""
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
        raise UnusableError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnusableError(f"{name} is not a JSON object")
    return value


def named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of ``bos_token``, ``eos_token`` and their like."""
    contents = ((name, _content(config.get(name))) for name in _NAMED_SPECIAL)
    return {name: content for name, content in contents if content is not None}


def _content(token: Any) -> str | None:
    """Return a token given as a string, or as an object with its ``content``."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _add_tokens(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
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
    candidates = [*named_special_tokens(config).values(), *(extra.values() if isinstance(extra, dict) else extra)]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [content for token in candidates if (content := _content(token)) is not None]
    tokenizer.add_special_tokens(
        [
            AddedToken(content, special=True, normalized=False)
            for content in dict.fromkeys(missing)
            if content not in added
        ]
    )
