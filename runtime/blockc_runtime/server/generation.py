"""A checked body to engine requests.

In: a body, the app it names. Out: a `Submission`: engine requests, and of a `Generation` how to show their outputs.
Invariant: an engine request that leaves here fits its chain: token ids inside the vocabulary,
prompt and output together inside ``max_model_len``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blockc_runtime.request import Request, Sampling
from blockc_runtime.server.catalogue import ServedApp
from blockc_runtime.server.chat_template import ChatTemplateError
from blockc_runtime.server.choice import Choice, likeliest
from blockc_runtime.server.errors import ApiError, invalid
from blockc_runtime.server.output import OutputOptions
from blockc_runtime.server.sampling_fields import samplings
from blockc_runtime.server.schemas import (
    MAX_CHOICES,
    MAX_INPUTS,
    MAX_PROMPTS,
    ChatBody,
    ClassifyBody,
    CompletionBody,
    EmbeddingBody,
)
from blockc_runtime.server.structured_fields import grammar_of
from blockc_runtime.server.tool_fields import calls_grammar, plain_messages, tools_of
from blockc_runtime.server.tools import CLOSE, OPEN, Tools

_COMPLETION_TOKENS = 16  # OpenAI's default
_INLINE_CHARS = 4096  # longer texts are tokenised beside the event loop
# Characters or tokens of a call that only converts them; or so many for each token that the model reads.
_MOST_SEEN = 1 << 18
_SEEN_PER_TOKEN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One HTTP call. ``requests[i]`` yields entry ``i`` of the answer."""

    id: str
    app: ServedApp
    requests: tuple[Request, ...]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(request.prompt) for request in self.requests)

    @property
    def most_tokens(self) -> int:
        """Tokens of all prompts, and all that may follow."""
        return self.prompt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(Submission):
    """A call whose answer is text.

    ``tries`` consecutive requests are answers to the same prompt; the ``n`` likeliest of them are shown.
    ``echoes``: the text of each prompt, where it is to stand before the answers.
    """

    options: OutputOptions
    n: int = 1
    tries: int = 1
    echoes: tuple[str, ...] = ()
    tools: Tools | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(request.prompt) for request in self.requests[:: self.tries])

    @property
    def most_tokens(self) -> int:
        """Tokens of all prompts, and all that may follow."""
        return self.prompt_tokens + sum(request.max_tokens for request in self.requests)

    def request_of(self, choice: int) -> int:
        """Return which request is the first for the prompt of an entry of the answer."""
        return choice // self.n * self.tries

    def prompt_of(self, choice: int) -> tuple[int, ...]:
        """Return the prompt that an entry of the answer belongs to."""
        return self.requests[self.request_of(choice)].prompt

    def echo_of(self, choice: int) -> str:
        """Return what stands before an entry of the answer."""
        return self.echoes[choice // self.n] if self.echoes else ""

    def shown(self, tried: Sequence[Choice]) -> list[Choice]:
        """Return the entries of the answer among all that were tried."""
        if self.n == self.tries:
            return list(tried)
        groups = (tried[first : first + self.tries] for first in range(0, len(tried), self.tries))
        return [choice for group in groups for choice in likeliest(group, self.n)]


async def completion_generation(body: CompletionBody, app: ServedApp) -> Generation:
    """Return the generation of ``/v1/completions``."""
    tries = body.n if body.best_of is None else body.best_of
    _check_tries(body, tries)
    prompts = _prompts(body.prompt, "prompt")
    for prompt in prompts:
        _check_length(app, prompt, "prompt")
    encoded = [await encode(app, prompt, add_special_tokens=body.add_special_tokens) for prompt in prompts]
    logprobs = body.logprobs
    if tries > body.n and logprobs is None:
        logprobs = 0  # the likeliest are chosen by them
    echoes = tuple([await _shown(app, prompt, body) for prompt in prompts]) if body.echo else ()
    grammar = await grammar_of(body)
    generation = _generation(
        "cmpl", body, app, encoded, body.max_tokens, logprobs, tries=tries, grammar=grammar, echoes=echoes
    )
    if not body.echo or body.logprobs is None:
        return generation
    return replace(generation, requests=tuple(_scored(generation, body.logprobs)))


def _scored(generation: Generation, logprobs: int) -> Iterator[Request]:
    """Yield the requests; the first of each prompt tells its log probabilities, and finds nothing of it computed."""
    for number, request in enumerate(generation.requests):
        if number % generation.tries:
            yield request
        else:
            group = f"{request.isolation_group}/{request.id}"
            yield replace(request, prompt_logprobs=logprobs, isolation_group=group)


def _check_tries(body: CompletionBody, tries: int) -> None:
    if tries < body.n:
        raise invalid(f"`best_of` is {tries}, less than the {body.n} answers to be shown", param="best_of")
    if tries > body.n and body.stream:
        raise invalid("the best answers are known at the end: `best_of` does not go with `stream`", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise invalid("`max_tokens`: 0 is of use with `echo` only", param="max_tokens")
    if body.echo and body.logprobs is not None and body.stream:
        raise invalid("prompts are not scored in a stream: `echo` with `logprobs` does not go with it", param="stream")


async def _shown(app: ServedApp, prompt: str | tuple[int, ...], body: CompletionBody) -> str:
    """Return a prompt as text."""
    if isinstance(prompt, str):
        return prompt
    check_tokens(prompt, app, "prompt")
    return await text_of(app, prompt, skip_special_tokens=body.skip_special_tokens)


async def chat_generation(body: ChatBody, app: ServedApp) -> Generation:
    """Return the generation of ``/v1/chat/completions``."""
    if app.text.chat_template is None:
        raise invalid("this model has no chat template; use /v1/completions", param="messages")
    if body.top_logprobs and not body.logprobs:
        raise invalid("`top_logprobs` needs `logprobs`", param="top_logprobs")
    tools = tools_of(body, app)
    prompt = await chat_prompt(body, app, is_read=True)
    grammar = await grammar_of(body)
    if (calls := await calls_grammar(body, tools)) is not None:
        if grammar is not None:
            raise invalid("`tool_choice` asks for a call, which is no answer of this form", param="response_format")
        grammar = calls
    limit = body.max_completion_tokens or body.max_tokens
    logprobs = body.top_logprobs if body.logprobs else None
    generation = _generation("chatcmpl", body, app, [prompt], limit, logprobs, tries=body.n, grammar=grammar)
    if tools is None:
        return generation
    # Where the marks of a call are special tokens, they have to be seen to be found.
    return replace(generation, tools=tools, options=replace(generation.options, shown=(OPEN, CLOSE)))


async def chat_prompt(body: ChatBody, app: ServedApp, *, is_read: bool = False) -> tuple[int, ...]:
    """Return the tokens that the model reads of a conversation. ``is_read``: it has to be able to. Raises 400."""
    if app.text.chat_template is None:
        raise invalid("this model has no chat template; use /v1/completions", param="messages")
    tools = None if tools_of(body, app) is None else [tool.model_dump(exclude_none=True) for tool in body.tools]
    try:
        text = app.text.chat_template.render(
            plain_messages(body.messages),
            add_generation_prompt=body.add_generation_prompt,
            variables=body.chat_template_kwargs,
            tools=tools,
        )
    except ChatTemplateError as error:
        raise invalid(f"the chat template refused: {error}", param="messages") from None
    (_check_length if is_read else check_size)(app, text, "messages")
    return await encode(app, text, add_special_tokens=body.add_special_tokens)


async def classification(body: ClassifyBody, app: ServedApp) -> Submission:
    """Return what ``/v1/classify`` asks of the engine: scores of each text."""
    return await _texts("classify", body, app, MAX_PROMPTS)


async def embedding(body: EmbeddingBody, app: ServedApp) -> Submission:
    """Return what ``/v1/embeddings`` asks of the engine: a vector of each text."""
    return await _texts("embd", body, app, MAX_INPUTS)


async def _texts(prefix: str, body: ClassifyBody | EmbeddingBody, app: ServedApp, most: int) -> Submission:
    """Texts that are read, and that nothing follows."""
    inputs = _prompts(body.input, "input", most)
    for text in inputs:
        _check_length(app, text, "input")
    texts = [await encode(app, text, add_special_tokens=body.add_special_tokens) for text in inputs]
    for text in texts:
        if not text:
            raise invalid("the input has no tokens", param="input")
        if len(text) > app.max_model_len:
            raise invalid(
                f"this model takes {app.max_model_len} tokens; the input has {len(text)}",
                param="input",
                code="context_length_exceeded",
            )
        check_tokens(text, app, "input")
    id_ = f"{prefix}-{secrets.token_hex(12)}"
    requests = tuple(
        Request(
            id=f"{id_}-{index}",
            app=app.index,
            chain=app.chain,
            epoch=app.epoch,
            isolation_group=app.isolation_group,
            prompt=text,
            emitted=0,
            max_tokens=1,
            stop_token_ids=(),
            sampling=Sampling(),
            priority=app.priority,
        )
        for index, text in enumerate(texts)
    )
    return Submission(id=id_, app=app, requests=requests)


def _check_length(app: ServedApp, text: str | tuple[int, ...], param: str) -> None:
    """Raise 400 for what can never fit, before anything is made of it: a million letters take seconds of a busy CPU."""
    if isinstance(text, tuple):
        least, has = len(text), f"`{param}` has {len(text)}"
    else:
        least = app.text.least_tokens(text)
        has = f"a text of {len(text)} characters has {least} at least"
    if least > app.max_model_len:
        raise invalid(
            f"this model takes {app.max_model_len} tokens; {has}", param=param, code="context_length_exceeded"
        )


def check_size(app: ServedApp, value: str | Sequence[int], param: str) -> None:
    """Raise 400 for more than anybody needs to see as tokens, or as text: it takes seconds of a CPU, and no quota."""
    most = max(_MOST_SEEN, _SEEN_PER_TOKEN * app.max_model_len)
    if len(value) > most:
        what = "characters" if isinstance(value, str) else "tokens"
        raise invalid(f"`{param}` has {len(value)} {what}; this route takes {most} at a time", param=param)


async def encode(app: ServedApp, text: str | tuple[int, ...], *, add_special_tokens: bool) -> tuple[int, ...]:
    """Return the tokens of a text; what are tokens already stays so."""
    if isinstance(text, tuple):
        return text
    if len(text) <= _INLINE_CHARS:
        return tuple(app.text.encode(text, add_special_tokens=add_special_tokens))
    return tuple(await asyncio.to_thread(app.text.encode, text, add_special_tokens=add_special_tokens))


async def text_of(app: ServedApp, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
    """Return the text of tokens that are all there."""
    return await asyncio.to_thread(app.text.vocabulary.text, tokens, skip_special_tokens=skip_special_tokens)


def _prompts(value: Any, param: str, most: int = MAX_PROMPTS) -> list[str | tuple[int, ...]]:
    """Return a text, texts, token ids or lists of token ids as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        kinds = set(map(type, value))
        if kinds == {int}:
            return [tuple(value)]
        if len(value) > most:
            raise invalid(f"at most {most} of `{param}` are allowed", param=param)
        if kinds == {str}:
            return value
        if kinds == {list} and all(set(map(type, ids)) <= {int} for ids in value):
            return [tuple(ids) for ids in value]
    raise invalid(f"`{param}` must be a text, a list of texts, token ids or a list of those", param=param)


def _generation(
    prefix: str,
    body: CompletionBody | ChatBody,
    app: ServedApp,
    prompts: Sequence[tuple[int, ...]],
    max_tokens: int | None,
    logprobs: int | None,
    *,
    tries: int,
    grammar: str | None,
    echoes: tuple[str, ...] = (),
) -> Generation:
    id_ = f"{prefix}-{secrets.token_hex(12)}"
    check_tokens(body.stop_token_ids, app, "stop_token_ids")
    eos = () if body.ignore_eos else app.stop_token_ids
    stop_token_ids = tuple(sorted({*eos, *body.stop_token_ids}))
    default = _COMPLETION_TOKENS if isinstance(body, CompletionBody) else None
    if grammar is not None and not stop_token_ids:
        raise invalid("this model knows no token that ends an answer", param="response_format")
    if len(prompts) * tries > MAX_CHOICES:
        raise invalid(
            f"{len(prompts)} prompts with {tries} answers each; a call has at most {MAX_CHOICES} answers", param="n"
        )
    requests = tuple(
        Request(
            id=f"{id_}-{number * tries + index}",
            app=app.index,
            chain=app.chain,
            epoch=app.epoch,
            isolation_group=app.isolation_group,
            prompt=prompt,
            emitted=0,
            max_tokens=_output_tokens(body, app, prompt, max_tokens, default),
            stop_token_ids=stop_token_ids,
            sampling=sampling,
            priority=app.priority if body.priority is None else body.priority,
            session=body.session_id or "",
            keep_s=body.session_ttl,
        )
        for number, prompt in enumerate(prompts)
        for index, sampling in enumerate(
            samplings(body, app, count=tries, logprobs=logprobs, stop_token_ids=stop_token_ids, grammar=grammar)
        )
    )
    options = OutputOptions(
        stops=tuple(body.stop),
        stop_token_ids=frozenset(stop_token_ids),
        eos_token_ids=frozenset(app.stop_token_ids),
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        min_tokens=body.min_tokens,
        is_silent=max_tokens == 0,
    )
    return Generation(id=id_, app=app, requests=requests, options=options, n=body.n, tries=tries, echoes=echoes)


def _output_tokens(
    body: CompletionBody | ChatBody, app: ServedApp, prompt: tuple[int, ...], asked: int | None, default: int | None
) -> int:
    """Return how many tokens may follow ``prompt``; 1 where none is wanted, for the engine always draws one."""
    limit = _max_tokens(app, prompt, 1 if asked == 0 else asked, default)
    if body.min_tokens > limit:
        raise invalid(
            f"`min_tokens` is {body.min_tokens}, more than the {limit} tokens there may be", param="min_tokens"
        )
    return limit


def check_tokens(ids: Sequence[int], app: ServedApp, param: str) -> None:
    """Raise 400 for ids that the model does not have."""
    if ids and not (min(ids) >= 0 and max(ids) < app.vocab_size):
        raise invalid(f"token ids run from 0 to {app.vocab_size - 1}", param=param)


def _max_tokens(app: ServedApp, prompt: tuple[int, ...], asked: int | None, default: int | None) -> int:
    """Return how many tokens may follow ``prompt``. Raises 400 for what cannot fit."""
    if not prompt:
        raise invalid("the prompt has no tokens", param="prompt")
    room = app.max_model_len - len(prompt)
    if room < 1:
        raise _too_long(app, f"the prompt has {len(prompt)}")
    check_tokens(prompt, app, "prompt")
    if asked is not None and asked > room:
        raise _too_long(app, f"the prompt has {len(prompt)} and {asked} more were asked for")
    return min(room, asked or default or app.defaults.max_new_tokens or room)


def _too_long(app: ServedApp, what: str) -> ApiError:
    return invalid(
        f"this model takes {app.max_model_len} tokens, prompt and output together; {what}",
        param="prompt",
        code="context_length_exceeded",
    )
