"""Rates of a device from steps that were measured on it.

In: shapes of steps with the seconds that each took, and the work of their plan. Out: the rates by which `StepPricer`
comes closest to them, and how close. Where devices read and compute one after the other, time is a sum of rates'
inverses, which is fitted by least squares without negative ones (Lawson and Hanson, 1974, chapter 23) on relative
errors. Where they do both at once it is a sum of maxima: with the rates at hand each launch is taken to read or to
compute, whichever takes longer, and that is fitted; repeated until nothing changes sides, from several beginnings. Both
are tried. Errors beyond a bound count by their size and not by its square (Huber, Annals of Mathematical Statistics 35,
1964): something else ran beside those steps. What a step takes and what its blocks take can only be told apart by
passes that took several steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from blockc.cost.price import TICKS_PER_S, StepPricer, sum_of_seen
from blockc.cost.rates import DeviceRates
from blockc.cost.work import PlanWork

_ROUNDS: Final = 20
# Of what no step showed: so fast that it costs nothing.
_FREE: Final = 1e30
# Columns: step, row, block; then bytes and operations of launches, of fine-tunes, of attention.
_LAUNCHES, _SIDES, _ATTENTION = 3, 5, 7
_COLUMNS: Final = 9
# Relative errors that are a fit's or a clock's; larger ones are a disturbance's.
_ORDINARY: Final = 0.1
_RIDGES: Final = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Kind = Literal["decode", "mixed", "prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """One row: ``tokens`` of a chain behind ``start`` that are cached; whether its logits are wanted."""

    chain: int
    start: int
    tokens: int
    samples: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A pass of these rows through their chains, and the seconds that it took.

    ``steps``: in how many steps, of which each passes a part of the blocks.
    """

    rows: tuple[RowShape, ...]
    seconds: float
    steps: int = 1

    @property
    def kind(self) -> Kind:
        """What its rows do."""
        return kind_of([row.tokens for row in self.rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class KindError:
    """How far prices are from what steps of one kind took: the median of relative errors, and of their sizes."""

    samples: int
    bias: float
    error_p50: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Rates, and how far prices are from what was measured: absolute relative errors, median and 95th percentile.

    ``kinds``: of the kinds of steps that were measured.
    """

    rates: DeviceRates
    samples: int
    error_p50: float
    error_p95: float
    kinds: Mapping[Kind, KindError]


def kind_of(tokens: Sequence[int]) -> Kind:
    """What the rows of a step with so many tokens each do: all decode, all read prompts, or some of each."""
    singles = sum(count == 1 for count in tokens)
    return "decode" if singles == len(tokens) else "mixed" if singles else "prompt"


def fit_rates(samples: Sequence[Sample], work: PlanWork) -> Fit:
    """Fit. Raises ValueError where nothing was measured."""
    if not samples:
        raise ValueError("no step was measured")
    terms = _Terms.of(samples, work)
    measured = np.array([sample.seconds for sample in samples])
    beside = [_settle(terms, measured, start, overlaps_reads=True) for start in _starts()]
    loss, inverse = min(beside, key=lambda item: item[0])
    summed = _settle(terms, measured, np.zeros(_COLUMNS), overlaps_reads=False)
    rates = _rates(inverse, overlaps_reads=True) if loss <= summed[0] else _rates(summed[1], overlaps_reads=False)
    pricer = StepPricer(work, rates)
    errors = np.array([price_s(sample, pricer) / sample.seconds - 1 for sample in samples])
    p50, p95 = np.percentile(np.abs(errors), (50, 95))
    return Fit(
        rates=rates, samples=len(samples), error_p50=float(p50), error_p95=float(p95), kinds=_kinds(samples, errors)
    )


def _kinds(samples: Sequence[Sample], errors: Array) -> dict[Kind, KindError]:
    found: dict[Kind, list[float]] = {}
    for sample, error in zip(samples, errors.tolist(), strict=True):
        found.setdefault(sample.kind, []).append(error)
    return {
        kind: KindError(samples=len(own), bias=float(np.median(own)), error_p50=float(np.median(np.abs(own))))
        for kind, own in sorted(found.items())
    }


def price_s(sample: Sample, pricer: StepPricer) -> float:
    """What a pass costs."""
    tokens, samples = _by_chain(sample)
    total = sample.steps * pricer.constant(len(sample.rows)) + pricer.launches(tokens, samples)
    total += sum(pricer.attention(row.chain, row.start, row.tokens) for row in sample.rows)
    return total / TICKS_PER_S


def nonnegative_least_squares(matrix: Array, target: Array) -> Array:
    """The ``x >= 0`` that minimises ``|matrix x - target|``: the active set method of Lawson and Hanson."""
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    x = np.zeros(matrix.shape[1])
    free: list[int] = []
    tolerance = 1e-10 * max(1.0, float(np.abs(target).max()))
    for _ in range(10 * matrix.shape[1]):
        gradient = scaled.T @ (target - scaled @ x)
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        free.append(best)
        while free:
            solution = np.linalg.lstsq(scaled[:, free], target, rcond=None)[0]
            if (solution > 0).all():
                x[:] = 0.0
                x[free] = solution
                break
            current = x[free]
            shrinking = solution <= 0
            step = float(np.min(current[shrinking] / (current[shrinking] - solution[shrinking])))
            x[free] = current + step * (solution - current)
            free = [index for index in free if x[index] > 1e-14]
    return np.asarray(x / scale)


def _starts() -> list[Array]:
    """Rates to begin with: operations that a launch, and attention, makes for each byte before it computes longer."""
    return [
        np.array([0.0, 0.0, 0.0, 1.0, 1 / ridge, 1.0, 1 / ridge, 1.0, 1 / other])
        for ridge in _RIDGES
        for other in _RIDGES
    ]


def _settle(terms: _Terms, measured: Array, inverse: Array, *, overlaps_reads: bool) -> tuple[float, Array]:
    """Fit, see what reads and what computes by that, and fit again; the best that was met, with its loss.

    Each round weighs errors so that their squares add up to Huber's loss at those of the round before.
    """
    best = np.inf, inverse
    weights = np.ones(len(measured))
    for _ in range(_ROUNDS):
        features = terms.features(inverse) if overlaps_reads else terms.summed
        inverse = nonnegative_least_squares(features / measured[:, None] * weights[:, None], weights)
        features = terms.features(inverse) if overlaps_reads else terms.summed
        errors = np.abs(features @ inverse / measured - 1)
        weights = np.sqrt(_ORDINARY / np.maximum(errors, _ORDINARY))
        loss = float(np.sum(np.where(errors < _ORDINARY, errors**2, _ORDINARY * (2 * errors - _ORDINARY))))
        if loss >= best[0] * (1 - 1e-9):
            break
        best = loss, inverse
    return best


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What steps consist of.

    ``fixed[s]``: steps, their rows, and blocks of sample s. Each term is a sample's, has a column of bytes and one of
    operations beside it, and takes as long as the longer of both, or as both. ``summed[s]``: all of sample s.
    """

    fixed: Array
    sample: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    column: np.ndarray[tuple[int, ...], np.dtype[np.intp]]
    nbytes: Array
    flops: Array
    summed: Array

    @classmethod
    def of(cls, samples: Sequence[Sample], work: PlanWork) -> _Terms:
        fixed, found = [], []
        for index, sample in enumerate(samples):
            blocks, terms = _terms_of(sample, work)
            fixed.append([float(sample.steps), float(sample.steps * len(sample.rows)), float(blocks)])
            found += [(index, column, nbytes, flops) for column, nbytes, flops in terms]
        table = np.array(found, dtype=float).reshape(-1, 4)
        owner, column = table[:, 0].astype(np.intp), table[:, 1].astype(np.intp)
        nbytes, flops = table[:, 2], table[:, 3]
        summed = np.zeros((len(fixed), _COLUMNS))
        summed[:, :_LAUNCHES] = fixed
        np.add.at(summed, (owner, column), nbytes)
        np.add.at(summed, (owner, column + 1), flops)
        return cls(
            fixed=np.array(fixed), sample=owner, column=column, nbytes=nbytes, flops=flops, summed=summed
        )  # fmt: skip

    def features(self, inverse: Array) -> Array:
        """How many of each inverse rate every sample takes, by what takes longer at these rates."""
        reads = self.nbytes * inverse[self.column] >= self.flops * inverse[self.column + 1]
        found = np.zeros((len(self.fixed), _COLUMNS))
        found[:, :_LAUNCHES] = self.fixed
        np.add.at(found, (self.sample, self.column + ~reads), np.where(reads, self.nbytes, self.flops))
        return found


def _terms_of(sample: Sample, work: PlanWork) -> tuple[int, list[tuple[int, float, float]]]:
    """Blocks that a pass launches, and its terms: column, bytes, operations."""
    tokens, samples = _by_chain(sample)
    found: list[tuple[int, float, float]] = []
    passing: dict[int, tuple[int, int]] = {}
    for chain, count in tokens.items():
        own = work.chains[chain]
        if own.side_bytes:
            found.append((_SIDES, own.side_bytes, own.side_token_flops * count))
        for segment in own.segments:
            had = passing.get(segment, (0, 0))
            passing[segment] = (had[0] + count, had[1] + samples.get(chain, 0))
    blocks = 0
    for segment, (count, sampled) in passing.items():
        launch = work.segments[segment]
        read = launch.read_bytes + sum(
            expert.nbytes * (1 - (1 - min(expert.chosen, expert.experts) / expert.experts) ** count)
            for expert in launch.experts
        )
        found.append((_LAUNCHES, read, launch.token_flops * count))
        if sampled:
            found.append((_LAUNCHES, launch.row_read_bytes, launch.row_flops * sampled))
        blocks += launch.blocks
    for row in sample.rows:
        end = row.start + row.tokens
        for item in work.chains[row.chain].attention:
            window = item.window or end
            seen = min(end, window - 1 + row.tokens)
            pairs = sum_of_seen(row.start, row.tokens, window)
            found.append((_ATTENTION, item.token_bytes * seen, item.pair_flops * pairs))
    return blocks, found


def _by_chain(sample: Sample) -> tuple[dict[int, int], dict[int, int]]:
    tokens: dict[int, int] = {}
    samples: dict[int, int] = {}
    for row in sample.rows:
        tokens[row.chain] = tokens.get(row.chain, 0) + row.tokens
        if row.samples:
            samples[row.chain] = samples.get(row.chain, 0) + 1
    return tokens, samples


def _rates(inverse: Array, *, overlaps_reads: bool) -> DeviceRates:
    def rate(column: int) -> float:
        return 1.0 / float(inverse[column]) if inverse[column] > 0 else _FREE

    return DeviceRates(
        step_s=float(inverse[0]),
        row_s=float(inverse[1]),
        block_s=float(inverse[2]),
        bytes_per_s=rate(3),
        flops_per_s=rate(4),
        sides=(rate(6), rate(5)),
        attention=(rate(8), rate(7)),
        overlaps_reads=overlaps_reads,
    )
