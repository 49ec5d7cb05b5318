"""A chain's text side: tokenizer, chat template and detokenisation, from the assets in the zoo.

In: the bytes of ``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja``.
Out: a `ChainText`. Invariant: token ids are those that transformers' fast tokenizer of the same
files gives, with and without special tokens; nothing is truncated or padded. What is put around a
text is up to ``tokenizer.json`` alone: beside it, transformers ignores ``add_bos_token``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from tokenizers import Tokenizer

from blockc.diag import DiagnosticError, Diagnostics
from blockc_runtime.server.chat_template import ChatTemplate, ChatTemplateError
from blockc_runtime.server.detokenize import Vocabulary
from blockc_runtime.token_lengths import most_characters
from blockc_runtime.tokenizer_files import (
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    TOKENIZER_CONFIG,
    UnusableError,
    configuration,
    load_tokenizer,
    named_special_tokens,
)

CHAT_TEMPLATE = "chat_template.jinja"
TEXT_ASSETS = (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, SPECIAL_TOKENS_MAP)


class ChainText:
    """Turns text into tokens and back. Shared by all apps whose assets are equal."""

    def __init__(self, tokenizer: Tokenizer, chat_template: ChatTemplate | None, vocabulary: Vocabulary) -> None:
        self._tokenizer = tokenizer
        self._most_characters = most_characters(tokenizer)
        self.chat_template = chat_template
        self.vocabulary = vocabulary

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of ``text``."""
        # As a batch of one, because only batches release the interpreter lock.
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded[0].ids
        return ids

    def least_tokens(self, text: str) -> int:
        """So many tokens a text has at least, by its length alone."""
        return 0 if self._most_characters is None else -(-len(text) // self._most_characters)


def load_chain_text(assets: Mapping[str, bytes], *, of: str = "a chain") -> ChainText:
    """Build a `ChainText`. Raises `DiagnosticError` (BC903) for assets it cannot understand; ``of`` says whose."""
    try:
        return _load(assets)
    except UnusableError as error:
        problems = Diagnostics()
        problems.report("BC903", f"{of}: {error}", help="correct the model's files and compile again")
        raise DiagnosticError(problems) from None


def _load(assets: Mapping[str, bytes]) -> ChainText:
    tokenizer = load_tokenizer(assets)
    config = configuration(assets)
    named = named_special_tokens(config)
    return ChainText(tokenizer, _chat_template(assets, config, named), Vocabulary(tokenizer))


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
    raise UnusableError(message)
