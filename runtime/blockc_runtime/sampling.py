"""From logits to tokens: a pure function of each row's logits, parameters, seed and output index.

In: logits ``[n, vocab]``, and for each row its `Sampling` and the index of the output that it decides. Out: a token a
row, with log probabilities where wanted, or a fault for a row without usable logits. Invariant: no row's outcome
depends on another row, on earlier calls or on global state; so batching, preemption and restarts never change a
seeded answer, given equal logits.

Probabilities are counted in whole numbers: a token weighs ``2**40 * exp((logit - largest) / temperature)``, rounded
from float64. Sums of whole numbers are the same in every order, so no kernel, batch size or device moves a border
between two tokens. The draw walks the tokens in the order of their ids and not of their probabilities: where noise
of a bfloat16 matmul swaps two near-equal tokens, ranks jump and ids do not.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from blockc.ir.recorded import DRAWN_AT_ONCE
from blockc_runtime.request import Sampling, TokenLogprob
from blockc_runtime.step import Fault, RowResult

UNSOUND = "the logits are not finite"
_UNIT = float(1 << 40)  # times a vocabulary of 2**18 and more still fits in 63 bits
# A nucleus rarely holds more candidates than this, and finding them costs a fifteenth of sorting the vocabulary.
_FIRST_CANDIDATES = 256
_MORE_CANDIDATES = 16
# A few MiB a temporary: beyond 32 MiB glibc maps fresh zero pages each time, and a row of 150k cost five times as much.
_ELEMENTS_AT_ONCE = 1 << 19


def sample(
    logits: Tensor,
    samplings: Sequence[Sampling],
    output_indices: Sequence[int],
    *,
    unsteered: Mapping[int, Tensor] | None = None,
) -> tuple[RowResult, ...]:
    """Draw one token from each row of ``logits [n, vocab]`` (any floating dtype).

    ``unsteered``: for rows of ``logits`` that were changed, what the model said (``[vocab]``): log probabilities are
    the model's. Minus infinity masks a token. A row with a NaN, with plus infinity or with every token masked yields
    a fault.
    """
    if not len(logits) == len(samplings) == len(output_indices):
        raise ValueError(f"{len(logits)} rows of logits, {len(samplings)} samplings, {len(output_indices)} indices")
    if not len(logits):
        return ()
    largest, likeliest = logits.max(-1)  # NaN wins over every number, and so does infinity
    tokens: list[int] = likeliest.tolist()
    sound: list[bool] = torch.isfinite(largest).tolist()
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0 and sound[row]]
    for rows in _by_width(drawn, samplings, logits):
        uniforms = [uniform_bits(samplings[row].seed, output_indices[row]) for row in rows]
        for row, token in zip(rows, _draw(logits[rows], [samplings[row] for row in rows], uniforms), strict=True):
            tokens[row] = token
    logprobs = _logprobs(logits, samplings, tokens, sound, unsteered or {})
    return tuple(
        RowResult(tokens=(token,), logprobs=logprobs.get(row, ()))
        if sound[row]
        else RowResult(tokens=(), logprobs=(), fault=Fault(scope="row", message=UNSOUND))
        for row, token in enumerate(tokens)
    )


def uniform_bits(seed: int, output_index: int) -> int:
    """64 random bits for one draw: a hash of seed and index (counter-based, there is no state to lose)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{output_index}".encode()).digest()[:8], "little")


def rows_at_once(logits: Tensor) -> int:
    """How many rows of ``logits [n, vocab]`` are drawn together."""
    return max(1, (DRAWN_AT_ONCE if logits.is_cuda else _ELEMENTS_AT_ONCE) // logits.shape[1])


def _by_width(rows: Sequence[int], samplings: Sequence[Sampling], logits: Tensor) -> Iterator[list[int]]:
    """Rows that take the same way, as many at once as memory likes."""
    vocab, count = logits.shape[1], rows_at_once(logits)
    filtered = [row for row in rows if is_filtered(samplings[row], vocab)]
    whole = [row for row in rows if not is_filtered(samplings[row], vocab)]
    for group in (filtered, whole):
        for first in range(0, len(group), count):
            yield group[first : first + count]


def top_k_of(sampling: Sampling, vocab: int) -> int:
    """Of how many of the likeliest tokens one is drawn."""
    return min(sampling.top_k, vocab) if sampling.top_k > 0 else vocab


def is_filtered(sampling: Sampling, vocab: int) -> bool:
    """Whether some tokens are left out by their rank or by how much the likelier ones sum up to."""
    return top_k_of(sampling, vocab) < vocab or sampling.top_p < 1


def _draw(logits: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[int]) -> list[int]:
    """Draw a token from each row; either all rows are filtered or none is."""
    if not is_filtered(samplings[0], logits.shape[1]):
        weights = _weights(logits, logits.amax(-1, keepdim=True), samplings)
        return _pick(weights, uniforms)
    return _draw_filtered(logits, samplings, uniforms, _FIRST_CANDIDATES)


def _draw_filtered(
    logits: Tensor, samplings: Sequence[Sampling], uniforms: Sequence[int], candidates: int
) -> list[int]:
    """Draw among the ``candidates`` likeliest tokens; rows that may keep more of them try again with more."""
    vocab = logits.shape[1]
    candidates = min(vocab, candidates)
    largest = logits.amax(-1, keepdim=True)
    if candidates < vocab:
        ids = logits.topk(candidates, sorted=False).indices.sort().values
        values = logits.gather(1, ids)
    else:
        ids, values = torch.arange(vocab, device=logits.device).expand_as(logits), logits
    weights = _weights(values, largest, samplings)
    # By rank, the lower id first among equals: bfloat16 logits are full of ties.
    ranks = values.sort(descending=True, stable=True).indices
    kept, certain = _kept(logits, largest, values.gather(1, ranks), weights.gather(1, ranks), samplings)
    is_kept = torch.arange(candidates, device=logits.device) < kept[:, None]
    weights = weights * torch.zeros_like(weights, dtype=torch.bool).scatter(1, ranks, is_kept)
    places = torch.tensor(_pick(weights, uniforms), device=logits.device)
    tokens: list[int] = ids.gather(1, places[:, None])[:, 0].tolist()
    again = [row for row, is_certain in enumerate(certain.tolist()) if not is_certain]
    if again:
        more = _draw_filtered(
            logits[again], [samplings[i] for i in again], [uniforms[i] for i in again], candidates * _MORE_CANDIDATES
        )
        for row, token in zip(again, more, strict=True):
            tokens[row] = token
    return tokens


def _kept(
    logits: Tensor, largest: Tensor, values: Tensor, weights: Tensor, samplings: Sequence[Sampling]
) -> tuple[Tensor, Tensor]:
    """How many of the ranked candidates each row keeps ``[n]``, and whether that is certain ``[n]``.

    As vLLM has it: the ``top_k`` likeliest, and of these the fewest likeliest that together reach ``top_p``. It is
    uncertain when the candidates do not reach that far, or end in a tie with a token that is no candidate.
    """
    vocab, candidates = logits.shape[1], values.shape[1]
    limits = [top_k_of(sampling, vocab) for sampling in samplings]
    top_k = torch.tensor(limits, device=logits.device)
    top_p = torch.tensor([sampling.top_p for sampling in samplings], dtype=torch.float64, device=logits.device)
    so_far = weights.cumsum(-1)
    total = so_far.gather(1, top_k.clamp(max=candidates)[:, None] - 1)[:, 0]
    unlimited = [row for row, limit in enumerate(limits) if limit == vocab]
    if unlimited and candidates < vocab:
        whole = _weights(logits[unlimited], largest[unlimited], [samplings[row] for row in unlimited])
        total[unlimited] = whole.sum(-1)
    kept = how_many(so_far, total, top_k, top_p)
    if candidates == vocab:
        return kept, torch.ones_like(kept, dtype=torch.bool)
    has_total = torch.tensor([limit <= candidates or limit == vocab for limit in limits], device=logits.device)
    last = values.gather(1, kept.clamp(max=candidates)[:, None] - 1)[:, 0]
    return kept, has_total & (kept <= candidates) & (last > values[:, -1])


def how_many(so_far: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """How many of the likeliest tokens are kept, ``[n]``: their weights, summed up to each, are ``so_far [n, width]``.

    ``total [n]``: of the ``top_k [n]`` likeliest, ``top_p [n]`` float64.
    """
    goal = (total.double() * top_p).ceil().long().clamp(min=1).minimum(total)
    reach = torch.searchsorted(so_far, goal[:, None])[:, 0] + 1
    return torch.where(top_p < 1, reach, top_k).minimum(top_k)


def whole_weights(values: Tensor, largest: Tensor, temperatures: Tensor) -> Tensor:
    """Unnormalised probabilities as whole numbers, ``[n, width]`` of int64.

    ``values [n, width]`` are logits, ``largest [n, 1]`` of them, ``temperatures [n]`` float64.
    """
    return values.double().sub_(largest).div_(temperatures[:, None]).exp_().mul_(_UNIT).round_().long()


def least_weight(sampling: Sampling) -> int:
    """What a token weighs at least, or it is not drawn."""
    return math.ceil(sampling.min_p * _UNIT)


def _weights(values: Tensor, largest: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Unnormalised probabilities as whole numbers, ``[n, width]`` of int64; 0 below ``min_p`` of the largest."""
    temperatures = torch.tensor([s.temperature for s in samplings], dtype=torch.float64, device=values.device)
    weights = whole_weights(values, largest, temperatures)
    if any(s.min_p > 0 for s in samplings):
        # The largest weighs exactly one unit, whatever the temperature.
        least = torch.tensor([least_weight(s) for s in samplings], device=values.device)
        weights.masked_fill_(weights < least[:, None], 0)
    return weights


def _pick(weights: Tensor, uniforms: Sequence[int]) -> list[int]:
    """Invert the cumulative distribution: the first place at which it exceeds the uniform draw."""
    so_far = weights.cumsum(-1)
    totals: list[int] = so_far[:, -1].tolist()
    marks = torch.tensor([bits * total >> 64 for bits, total in zip(uniforms, totals, strict=True)])
    places: list[int] = torch.searchsorted(so_far, marks.to(weights.device)[:, None], right=True)[:, 0].tolist()
    return places


def _logprobs(
    logits: Tensor,
    samplings: Sequence[Sampling],
    tokens: Sequence[int],
    sound: Sequence[bool],
    unsteered: Mapping[int, Tensor],
) -> dict[int, tuple[TokenLogprob]]:
    """Log probabilities of the chosen and the likeliest tokens, before temperature and filters."""
    wanted = [(row, s.logprobs) for row, s in enumerate(samplings) if s.logprobs is not None and sound[row]]
    if not wanted:
        return {}
    rows = [row for row, _ in wanted]
    own = logits[rows].float()
    for i, row in enumerate(rows):
        if row in unsteered:
            own[i] = unsteered[row]
    most = max(count for _, count in wanted)
    entries = token_logprobs(own, [tokens[row] for row in rows], most)
    return {
        row: (TokenLogprob(logprob=entry.logprob, top=entry.top[:count]),)
        for entry, (row, count) in zip(entries, wanted, strict=True)
    }


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[TokenLogprob, ...]:
    """Log probabilities of a token in each row of ``logits [n, vocab]``, and the ``top`` likeliest beside it."""
    if not tokens:
        return ()
    own = logits.float()
    norms = own.logsumexp(-1, keepdim=True)
    index = torch.tensor(tokens, device=logits.device)[:, None]
    chosen: list[float] = (own.gather(1, index) - norms)[:, 0].tolist()
    best = own.topk(min(own.shape[1], top))
    top_ids: list[list[int]] = best.indices.tolist()
    top_values: list[list[float]] = (best.values - norms).tolist()
    return tuple(
        TokenLogprob(logprob=logprob, top=tuple(zip(ids, values, strict=True)))
        for logprob, ids, values in zip(chosen, top_ids, top_values, strict=True)
    )
