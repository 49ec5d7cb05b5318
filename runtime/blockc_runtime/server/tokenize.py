"""``/tokenize`` and ``/detokenize``, worded as vLLM words them.

In: a checked body, the app it names. Out: plain JSON values. Invariant: the tokens are those that a completion of the
same prompt, or a chat of the same messages, would read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from blockc_runtime.server.catalogue import ServedApp
from blockc_runtime.server.errors import invalid
from blockc_runtime.server.generation import chat_prompt, check_size, check_tokens, encode, text_of
from blockc_runtime.server.schemas import ChatBody, DetokenizeBody, TokenizeBody, validate


async def tokenized(body: TokenizeBody, app: ServedApp) -> dict[str, Any]:
    """Return the tokens of a text or a conversation. Raises 400."""
    if (body.prompt is None) == (body.messages is None):
        raise invalid("give either `prompt` or `messages`", param="prompt")
    if body.prompt is not None:
        check_size(app, body.prompt, "prompt")
        special = True if body.add_special_tokens is None else body.add_special_tokens
        tokens = await encode(app, body.prompt, add_special_tokens=special)
    else:
        fields = body.model_dump(exclude={"prompt", "return_token_strs"}, exclude_none=True)
        tokens = await chat_prompt(validate(ChatBody, fields), app)
    answer: dict[str, Any] = {"count": len(tokens), "max_model_len": app.max_model_len, "tokens": tokens}
    if body.return_token_strs:
        answer["token_strs"] = await asyncio.to_thread(lambda: list(map(app.text.vocabulary.token_text, tokens)))
    return answer


async def detokenized(body: DetokenizeBody, app: ServedApp) -> dict[str, Any]:
    """Return the text of tokens, special ones included. Raises 400 for ids that the model lacks."""
    check_size(app, body.tokens, "tokens")
    check_tokens(body.tokens, app, "tokens")
    return {"prompt": await text_of(app, body.tokens, skip_special_tokens=False)}
