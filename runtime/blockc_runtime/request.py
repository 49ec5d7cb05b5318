"""A request as the engine sees it: token ids in, token ids out. Text stays in the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """What changes logits before a draw, given the tokens so far (`steering.py`). Rows without it pay nothing.

    ``logit_bias``: token ids with what is added to their logits. ``stop_token_ids`` are barred from the first
    ``min_tokens`` outputs. ``grammar``: what the whole output has to follow, as llguidance words it; its end are
    ``stop_token_ids``.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    grammar: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 do not filter.

    ``seed`` with the output index determines a draw completely (`sampling.py`), so preemption, restarts and
    batching never change a seeded answer. ``logprobs`` None: none; n: the n likeliest beside the chosen one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: int | None = None
    min_p: float = 0.0
    steering: Steering | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sequence to extend.

    ``prompt`` holds prompt tokens followed by ``emitted`` tokens that an earlier engine already produced (a restart
    goes on where it was): output indices start at ``emitted`` and ``max_tokens`` counts them. ``priority``: among the
    tenant's own requests, the lowest first. ``session``: a name within the isolation group, empty for none, whose pages
    are kept for ``keep_s`` once the request has ended well.
    ``epoch``: the number of the plan whose indices ``app`` and ``chain`` are.
    ``prompt_logprobs`` n: also tell the log probability of each prompt token but the first, and the n likeliest there.
    """

    id: str
    app: int  # index into the plan's apps
    chain: int  # index into the plan's chains
    isolation_group: str
    prompt: tuple[int, ...]
    emitted: int
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    sampling: Sampling
    priority: int = 0
    session: str = ""
    keep_s: float = 0.0
    prompt_logprobs: int | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Log probability of an emitted token under the unfiltered distribution, and the likeliest alternatives."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensEvent:
    """Tokens of one request, in order; ``logprobs`` is empty or as long as ``tokens``.

    ``prompt_logprobs``: of prompt tokens from index ``prompt_start`` on. After a preemption some come again.
    """

    request: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_start: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EndEvent:
    """The one end of a request. ``cached_tokens``: prompt tokens whose KV was found, not computed.

    A stop token that ended the request has been emitted as its last token. ``scores``: of the text's classes, or its
    embedding, from a model that yields these in place of tokens.
    """

    request: str
    reason: FinishReason
    message: str
    cached_tokens: int
    scores: tuple[float, ...] = ()


Event = TokensEvent | EndEvent
