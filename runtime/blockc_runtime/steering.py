"""Steering: penalties, biases and barred tokens, between a row's logits and its draw.

In: logits of a row, its `Steering`, the tokens so far, and the index of the output to draw. Out: the logits, changed
in place. Invariant: a pure function of these: whoever computes the row again, after a preemption, in another batch or
in another engine, changes it alike.

The penalties are those of vLLM and, of repetition, of CTRL (arXiv 1909.05858, section 4.1): presence and frequency look
at outputs, repetition at the prompt, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blockc_runtime.request import Steering


def steer(
    logits: Tensor, steering: Steering, history: Sequence[int], output_index: int, allowed: Tensor | None = None
) -> None:
    """Change ``logits [vocab]``, float32, in place. The last ``output_index`` tokens of ``history`` are outputs.

    ``allowed [vocab]``: the tokens with which a grammar goes on; where it only can end, it ends before ``min_tokens``.
    Token ids beyond the vocabulary have no logits and are passed over.
    """
    if allowed is not None:
        logits.masked_fill_(~allowed.to(logits.device), float("-inf"))
    if output_index < steering.min_tokens:
        stops = _known(steering.stop_token_ids, logits)
        if allowed is None or int(allowed.sum()) > int(allowed[stops.cpu()].sum()):
            logits[stops] = float("-inf")
    if steering.logit_bias:
        known = [(token, bias) for token, bias in steering.logit_bias if 0 <= token < len(logits)]
        ids = torch.tensor([token for token, _ in known], dtype=torch.int64, device=logits.device)
        logits[ids] += torch.tensor([bias for _, bias in known], dtype=logits.dtype, device=logits.device)
    if steering.repetition_penalty != 1:
        seen, _ = _counted(history, logits)
        own = logits[seen]
        logits[seen] = torch.where(own > 0, own / steering.repetition_penalty, own * steering.repetition_penalty)
    if steering.presence_penalty or steering.frequency_penalty:
        seen, counts = _counted(history[len(history) - output_index :], logits)
        logits[seen] -= steering.presence_penalty + steering.frequency_penalty * counts.to(logits.dtype)


def _known(tokens: Sequence[int], logits: Tensor) -> Tensor:
    ids = [token for token in tokens if 0 <= token < len(logits)]
    return torch.tensor(ids, dtype=torch.int64, device=logits.device)


def _counted(tokens: Sequence[int], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct tokens that have logits, and how often each occurs."""
    ids = np.asarray(tokens, dtype=np.int64)
    seen, counts = np.unique(ids[(ids >= 0) & (ids < len(logits))], return_counts=True)
    return torch.from_numpy(seen).to(logits.device), torch.from_numpy(counts).to(logits.device)
