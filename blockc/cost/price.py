"""The time of a step, from what its rows are.

In: the work of a plan, the rates of one instance's devices. Out: ticks, of which a second has 10^15: whole numbers, so
that sums do not depend on their order. A launch takes as long as the longer of what it reads and what it computes, or
as both together on devices that do one after the other; attention, fine-tunes and constants come on top, so a step of
more rows never takes less. Invariant: a decode row whose context grows by one makes its step longer by a constant, as
long as no window is full: steps that differ in nothing else can be priced together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from blockc.cost.rates import Both, DeviceRates
from blockc.cost.work import AttentionWork, PlanWork, SegmentWork

TICKS_PER_S: Final = 10**15


def ticks(seconds: float) -> int:
    """The nearest whole number of ticks."""
    return round(seconds * TICKS_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """``set_up_s`` once a launch and ``token_s`` for each token: what the roofline lies below."""

    set_up_s: float
    token_s: float


class StepPricer:
    """Prices steps of one instance. Chains and segments are indices into the plan's tables."""

    def __init__(self, work: PlanWork, rates: DeviceRates) -> None:
        self._work = work
        self._both = rates.both
        side_flops_per_s, side_bytes_per_s = rates.side_rates
        self._segments_of = tuple(chain.segments for chain in work.chains)
        self._attention = tuple(tuple(_Attention.of(item, rates) for item in chain.attention) for chain in work.chains)
        # Of chains without windows: what each token that a decode row sees costs.
        self._decode = tuple(
            sum(item.pair for item in own) if all(item.window is None for item in own) else None
            for own in self._attention
        )
        self._sides = tuple(
            (ticks(chain.side_bytes / side_bytes_per_s), ticks(chain.side_token_flops / side_flops_per_s))
            for chain in work.chains
        )
        self._reads = tuple(ticks(chain.side_bytes / rates.read_bytes_per_s) for chain in work.chains)
        self._fills = tuple(ticks(chain.side_bytes / rates.fill_bytes_per_s) for chain in work.chains)
        self._rates = rates
        self._launches = tuple(_Launch.of(segment, rates) for segment in work.segments)
        self._step, self._row = ticks(rates.step_s), ticks(rates.row_s)
        self._kv_bytes = tuple(sum(item.token_bytes for item in chain.attention) for chain in work.chains)

    def at(self, rates: DeviceRates) -> StepPricer:
        """The same work at other rates."""
        return StepPricer(self._work, rates)

    @property
    def segments(self) -> int:
        """How many there are."""
        return len(self._launches)

    def segments_of(self, chain: int) -> tuple[int, ...]:
        """Those that a chain passes, in order."""
        return self._segments_of[chain]

    def kv_bytes(self, chain: int) -> int:
        """Of one token's keys and values."""
        return self._kv_bytes[chain]

    def side_read(self, chain: int) -> int:
        """What reading the fine-tune of a chain adds to a step, however few rows have it."""
        return self._sides[chain][0]

    def launches(self, tokens: Mapping[int, int], samples: Mapping[int, int]) -> int:
        """All launches of a step with fine-tunes, without attention and without what every step takes.

        ``tokens``: chain -> its tokens in the step; ``samples``: chain -> its rows whose logits are wanted.
        """
        per_segment: dict[int, list[int]] = {}
        total = 0
        for chain, count in tokens.items():
            sampled = samples.get(chain, 0)
            for segment in self._segments_of[chain]:
                found = per_segment.get(segment)
                if found is None:
                    per_segment[segment] = [count, sampled]
                else:
                    found[0] += count
                    found[1] += sampled
            total += self.sides(chain, count)
        for segment, (count, sampled) in per_segment.items():
            total += self._launches[segment].price(count, sampled)
        return total

    def launch(self, segment: int, tokens: int, *, samples: int = 0) -> int:
        """One of those: a segment on so many tokens, of whoever they are, without fine-tunes."""
        return self._launches[segment].price(tokens, samples)

    def sides(self, chain: int, tokens: int) -> int:
        """What a chain's fine-tune adds to all of its launches in a step."""
        read, token = self._sides[chain]
        return self._both(read, token * tokens)

    def constant(self, rows: int) -> int:
        """What a step takes however little its rows ask for."""
        return self._step + self._row * rows

    def read(self, chain: int) -> int:
        """How long the sides of a chain take from the zoo to where they can be put in a slot; steps go on meanwhile."""
        return self._reads[chain]

    def fill(self, chain: int) -> int:
        """What putting the sides of a chain in a slot adds to the step before which it is done."""
        return self._fills[chain]

    def bring(self, nbytes: int, *, from_host: bool) -> int:
        """How long so many bytes of weights take to where a segment has them; steps go on meanwhile.

        Those that are in the host's memory are only copied, others are read from the zoo before that.
        """
        filled = ticks(nbytes / self._rates.fill_bytes_per_s)
        return filled if from_host else filled + ticks(nbytes / self._rates.read_bytes_per_s)

    def attention(self, chain: int, start: int, count: int) -> int:
        """Attention of one row: tokens ``start .. start + count - 1`` of a sequence of which all before is cached."""
        return sum([item.price(start, count) for item in self._attention[chain]])

    def decode(self, chain: int, position: int) -> tuple[int, int, int | None]:
        """Attention of a decode row; by how much it grows from step to step; for how many steps, None: for good."""
        simple = self._decode[chain]
        if simple is not None:
            return simple * (position + 1), simple, None
        growth = 0
        steps: int | None = None
        for item in self._attention[chain]:
            if item.window is None:
                growth += item.pair
            elif position + 1 < item.window:
                growth += item.pair
                left = item.window - position
                steps = left if steps is None else min(steps, left)
        return self.attention(chain, position, 1), growth, steps

    def affine(self, segment: int, *, samples: bool = False) -> Affine:
        """A launch as placement counts it: reading and computing never overlap, so no step takes longer than this."""
        launch = self._launches[segment]
        set_up = launch.read + launch.constant + (launch.row_read if samples else 0)
        token = launch.token + launch.reduce_token + (launch.row if samples else 0)
        return Affine(set_up_s=set_up / TICKS_PER_S, token_s=token / TICKS_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launch:
    """``experts``: ticks to read all, and the part of them that one token leaves out."""

    read: int
    row_read: int
    token: int
    row: int
    constant: int
    reduce_token: int
    experts: tuple[tuple[float, float], ...]
    both: Both

    @classmethod
    def of(cls, work: SegmentWork, rates: DeviceRates) -> _Launch:
        reduce_rate = rates.reduce_bytes_per_s
        return cls(
            read=ticks(work.read_bytes / rates.bytes_per_s),
            row_read=ticks(work.row_read_bytes / rates.bytes_per_s),
            token=ticks(work.token_flops / rates.flops_per_s),
            row=ticks(work.row_flops / rates.flops_per_s),
            constant=ticks(work.blocks * rates.block_s + work.reduces * rates.reduce_s),
            reduce_token=0 if reduce_rate is None else ticks(work.reduce_bytes / reduce_rate),
            experts=_expert_terms(work, rates),
            both=rates.both,
        )

    def price(self, tokens: int, samples: int) -> int:
        read = self.read
        for all_, missed in self.experts:  # expected to be read where every token chooses by chance
            read += round(all_ * (1 - missed**tokens))
        total = self.constant + self.reduce_token * tokens
        total += self.both(read, self.token * tokens)
        if samples:
            total += self.both(self.row_read, self.row * samples)
        return total


def _expert_terms(work: SegmentWork, rates: DeviceRates) -> tuple[tuple[float, float], ...]:
    """Layers of equally many experts together: nothing else about them counts."""
    totals: dict[float, float] = {}
    for expert in work.experts:
        missed = 1 - min(expert.chosen, expert.experts) / expert.experts
        totals[missed] = totals.get(missed, 0.0) + expert.nbytes / rates.bytes_per_s * TICKS_PER_S
    return tuple((all_, missed) for missed, all_ in sorted(totals.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """``pair``: of a decode row, for each token that it sees; a chunk computes more for what it reads."""

    window: int | None
    token: int
    flops: int
    pair: int
    both: Both

    @classmethod
    def of(cls, work: AttentionWork, rates: DeviceRates) -> _Attention:
        flops_per_s, bytes_per_s = rates.attention_rates
        token, flops = ticks(work.token_bytes / bytes_per_s), ticks(work.pair_flops / flops_per_s)
        both = rates.both
        return cls(window=work.window, token=token, flops=flops, pair=both(token, flops), both=both)

    def price(self, start: int, count: int) -> int:
        end = start + count
        if count == 1:
            return self.pair * (end if self.window is None else min(end, self.window))
        if self.window is None:
            read, computed = self.token * end, self.flops * (count * start + count * (count + 1) // 2)
        else:
            read = self.token * min(end, self.window - 1 + count)
            computed = self.flops * sum_of_seen(start, count, self.window)
        return self.both(read, computed)


def sum_of_seen(start: int, count: int, window: int) -> int:
    """Pairs of a chunk under a window: the token at position p sees ``min(p + 1, window)``."""
    growing = max(0, min(start + count, window) - start)
    return growing * start + growing * (growing + 1) // 2 + (count - growing) * window
