"""What a chain's expected load takes of a cell: seconds of a sweep, of a token, of a prompt.

In: the work of segments and chains, the rates of a cell. Out: seconds. A cell sweeps each of its segments once per
*cadence* tau; with a step time that is affine in its tokens (DistServe, arXiv 2401.09670, fits such) and tau * R
tokens a step, the busy share is ``sweep / tau + R * token``: a set-up cost of each resident segment and a linear cost
of traffic. A step takes so many requests, rows, and a token of each, so there are at least R / rows of them a second:
where that is more often than tau asks for, it is ``sweep * R / rows + R * token``. The roofline's maximum lies below
this sum, so it errs on the safe side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from blockc.cost import ChainWork, DeviceRates, SegmentWork
from blockc.place.problem import PlaceLoad

# Where nobody says how fast tokens have to come: 20 a second, several times as fast as people read.
DEFAULT_TPOT_S: Final = 0.05
# Of the KV pages that are in flight on average (Little), so that a burst finds room.
IN_FLIGHT_MARGIN: Final = 1.3
# Parts of a cell's time that traffic may take, from which the time to first token chooses.
BUSY_LIMITS: Final = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
DEFAULT_BUSY_LIMIT: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainTimes:
    """Seconds on one kind of cell. ``prompt_s``: of one prompt; ``token_s``: of one further token."""

    prompt_s: float
    token_s: float

    def request_s(self, load: PlaceLoad) -> float:
        """Of one request, without the sweeps that it shares with others."""
        return self.prompt_s + float(load.output_tokens) * self.token_s


def sweep_s(work: SegmentWork, rates: DeviceRates) -> float:
    """Reading all that a segment has, and launching it. Of experts all are read: some row chooses each."""
    nbytes = work.read_bytes + work.row_read_bytes + sum(expert.nbytes for expert in work.experts)
    return nbytes / rates.bytes_per_s + work.blocks * rates.block_s + work.reduces * rates.reduce_s


def sides_sweep_s(work: ChainWork, rates: DeviceRates) -> float:
    """Reading the sides of a chain."""
    return work.side_bytes / rates.side_rates[1]


def chain_times(
    work: ChainWork, segments: tuple[SegmentWork, ...], rates: DeviceRates, load: PlaceLoad, *, step_tokens: int
) -> ChainTimes:
    """Of a chain at its expected lengths. ``step_tokens``: the longest chunk of a prompt in one step."""
    prompt, output = float(load.prompt_tokens), float(load.output_tokens)
    own = [segments[index] for index in work.segments]
    per_token = sum(item.token_flops for item in own) / rates.flops_per_s
    per_token += work.side_token_flops / rates.side_rates[0]
    if rates.reduce_bytes_per_s is not None:
        per_token += sum(item.reduce_bytes for item in own) / rates.reduce_bytes_per_s
    per_row = sum(item.row_flops for item in own) / rates.flops_per_s + rates.row_s
    flops_per_s, bytes_per_s = rates.attention_rates
    context = prompt + output / 2
    decode = prefill = 0.0
    for item in work.attention:
        pair = rates.both(item.token_bytes / bytes_per_s, item.pair_flops / flops_per_s)
        decode += pair * (context if item.window is None else min(context, item.window))
        pairs = prompt * (prompt + 1) / 2 if item.window is None else prompt * min((prompt + 1) / 2, item.window)
        prefill += rates.both(item.token_bytes * prompt / bytes_per_s, item.pair_flops * pairs / flops_per_s)
    chunks = math.ceil(prompt / step_tokens)
    return ChainTimes(
        prompt_s=prompt * per_token + prefill + (chunks - 1) * rates.row_s + per_row,
        token_s=per_token + per_row + decode,
    )


def cadence_s(load: PlaceLoad) -> float:
    """The slowest cadence that the chain's targets allow. A first token waits for the end of a sweep half its time."""
    pace_s = DEFAULT_TPOT_S if load.tpot_s is None else float(load.tpot_s)
    return pace_s if load.ttft_s is None else min(pace_s, float(load.ttft_s) / 2)


def decoded_per_s(load: PlaceLoad) -> float:
    """Tokens of answers a second."""
    return float(load.rate_rps * load.output_tokens)


def paced_s(target_s: float, tokens_per_s: float, rows: int) -> float:
    """A cadence that targets allow, or a faster one where so many tokens fill steps of so many rows."""
    return min(target_s, rows / tokens_per_s) if tokens_per_s > 0 else target_s


def in_flight(load: PlaceLoad) -> float:
    """Requests at once, where each token takes a whole cadence (Little's law)."""
    return decoded_per_s(load) * cadence_s(load)


def first_token_s(prompt_s: float, busy: float, tau_s: float, *, cv: float = 1.0) -> float:
    """The 95th percentile of the time to first token where a cell is busy for a part ``busy`` of its time.

    A prompt gets what decoding leaves, of which half of ``busy`` is taken to be; prompts wait for each other as in
    M/G/1, with an exponential tail; and the token comes at the end of a sweep. `blockc simulate` is the check of it.
    """
    service = prompt_s / (1 - busy / 2)
    tail = service * (1 + cv * cv) / (2 * (1 - busy))
    return tail * math.log(max(1.0, busy / 0.05)) + service + tau_s


def busy_limit(prompt_s: float, load: PlaceLoad) -> float | None:
    """The largest part of a cell's time that may be busy for the time to first token. None: even least is late."""
    if load.ttft_s is None:
        return DEFAULT_BUSY_LIMIT
    target = float(load.ttft_s)
    return next((limit for limit in BUSY_LIMITS if first_token_s(prompt_s, limit, cadence_s(load)) <= target), None)
