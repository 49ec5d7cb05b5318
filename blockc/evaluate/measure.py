"""How far one model's predictions are from another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Over all tokens of the probe.

    ``kl_mean`` and ``kl_max``: divergence of the next token's distribution from the original's, in nats; ``top1``: the
    share of tokens whose likeliest successor is the same; ``perplexity`` and ``original_perplexity`` of the probe's own
    text.
    """

    tokens: int
    kl_mean: float
    kl_max: float
    top1: float
    perplexity: float
    original_perplexity: float

    def metric(self, name: str) -> float:
        """What an `approx` bounds: ``kl``, ``top1`` (the share that differs), ``perplexity`` (its relative growth)."""
        match name:
            case "kl":
                return self.kl_mean
            case "top1":
                return 1 - self.top1
            case "perplexity":
                return abs(self.perplexity / self.original_perplexity - 1)
        raise ValueError(name)


def compare(original: Sequence[Tensor], other: Sequence[Tensor], texts: Sequence[Sequence[int]]) -> Agreement:
    """Logits ``[len(text), vocab]`` of each text by two models of one vocabulary."""
    divergences, same, count = [], 0, 0
    losses = [0.0, 0.0]
    predicted = 0
    for ours, theirs, text in zip(original, other, texts, strict=True):
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1))
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        count += len(text)
        following = torch.tensor(text[1:], dtype=torch.int64)[:, None]
        predicted += len(text) - 1
        losses[0] -= float(p[:-1].gather(1, following).sum())
        losses[1] -= float(q[:-1].gather(1, following).sum())
    kl = torch.cat(divergences).clamp_(min=0)
    return Agreement(
        tokens=count,
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1=same / count,
        perplexity=math.exp(losses[1] / max(1, predicted)),
        original_perplexity=math.exp(losses[0] / max(1, predicted)),
    )
