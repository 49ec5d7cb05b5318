"""The fields of a body that say how tokens are drawn, as the engine takes them.

In: a checked body, the app it names. Out: a `Sampling` for each sequence. Invariant: `Sampling.steering` is None where
the body asks for nothing that needs it: only rows that are steered pay for it.
"""

from __future__ import annotations

import hashlib
import secrets

from blockc_runtime.request import Sampling, Steering
from blockc_runtime.server.catalogue import ServedApp
from blockc_runtime.server.errors import invalid
from blockc_runtime.server.schemas import ChatBody, CompletionBody

_NO_STEERING = Steering()


def samplings(
    body: CompletionBody | ChatBody,
    app: ServedApp,
    *,
    count: int,
    logprobs: int | None,
    stop_token_ids: tuple[int, ...],
    grammar: str | None,
) -> tuple[Sampling, ...]:
    """Return how each of ``count`` answers to one prompt is drawn. Raises 400 for tokens that the model lacks."""
    defaults = app.defaults
    top_k = defaults.top_k if body.top_k is None else body.top_k
    steering = _steering(body, app, stop_token_ids, grammar)
    return tuple(
        Sampling(
            temperature=defaults.temperature if body.temperature is None else float(body.temperature),
            top_p=defaults.top_p if body.top_p is None else float(body.top_p),
            top_k=max(0, top_k),  # vLLM's -1 is 0 here: no filter
            min_p=defaults.min_p if body.min_p is None else float(body.min_p),
            seed=seed_of(body.seed, index),
            logprobs=logprobs,
            steering=steering,
        )
        for index in range(count)
    )


def seed_of(seed: int | None, index: int) -> int:
    """Return 64 bits for the answer ``index`` to a prompt. The first one's are the client's own, if it gave any."""
    if seed is None:
        return secrets.randbits(64)
    if index == 0:
        return seed % 2**64  # a negative one is as good as any
    return int.from_bytes(hashlib.sha256(f"{seed}/choice {index}".encode()).digest()[:8], "little")


def _steering(
    body: CompletionBody | ChatBody, app: ServedApp, stop_token_ids: tuple[int, ...], grammar: str | None
) -> Steering | None:
    repetition = app.defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
    steering = Steering(
        presence_penalty=float(body.presence_penalty),
        frequency_penalty=float(body.frequency_penalty),
        repetition_penalty=float(repetition),
        logit_bias=_biases(body, app),
        min_tokens=body.min_tokens,
        stop_token_ids=stop_token_ids if body.min_tokens or grammar is not None else (),
        grammar=grammar,
    )
    return None if steering == _NO_STEERING else steering


def _biases(body: CompletionBody | ChatBody, app: ServedApp) -> tuple[tuple[int, float], ...]:
    biases = []
    for key, bias in body.logit_bias.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) < app.vocab_size):
            raise invalid(f"the keys of `logit_bias` are token ids from 0 to {app.vocab_size - 1}", param="logit_bias")
        biases.append((int(key), float(bias)))
    if len({token for token, _ in biases}) < len(biases):
        raise invalid("`logit_bias` names a token twice", param="logit_bias")
    return tuple(sorted(biases))
