"""Rates that were put in are found again in what steps take, and profiles come back as they were written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from blockc.cost import DeviceRates, StepPricer, plan_work
from blockc.cost.fit import Fit, RowShape, Sample, fit_rates, nonnegative_least_squares, price_s
from blockc.cost.profile import profile_of, read_profile, write_profile
from blockc.diag import DiagnosticError
from tests.plan.fleet import fleet_plan

WORK = plan_work(fleet_plan(adapters=4))
TRUE = DeviceRates(
    flops_per_s=3e9, bytes_per_s=2e8, block_s=3e-5, row_s=1e-5, step_s=4e-4, sides=(1e9, 5e7), attention=(1e9, 1e8)
)


def shapes() -> list[tuple[RowShape, ...]]:
    """Decodes of few and many rows behind short and long contexts on one chain and on all, and chunks of prompts."""
    decodes = [
        tuple(RowShape(chain=chains[i % len(chains)], start=start + i, tokens=1, samples=True) for i in range(rows))
        for rows in (1, 2, 3, 5, 8)
        for start in (4, 40, 100)
        for chains in ((0,), (2,), (0, 1, 2, 3, 4, 5))
    ]
    chunks = [
        tuple(RowShape(chain=chain, start=10 * i, tokens=tokens, samples=i == 0) for i in range(rows))
        for rows in (1, 2, 3, 5, 8)
        for tokens in (8, 32, 100)
        for chain in (0, 3)
    ]
    return decodes + chunks


def in_parts() -> list[Sample]:
    """Prompts that pass the blocks in several steps; their time is still to be filled in."""
    return [
        Sample(rows=(RowShape(chain=0, start=0, tokens=tokens, samples=True),), seconds=1.0, steps=steps)
        for tokens in (8, 64)
        for steps in (2, 4)
    ]


def samples(noise: float = 0.0, rates: DeviceRates = TRUE) -> list[Sample]:
    random = np.random.default_rng(1)
    found = []
    for sample in [*(Sample(rows=rows, seconds=1.0) for rows in shapes()), *in_parts()]:
        exact_s = price_s(sample, StepPricer(WORK, rates))
        found.append(replace(sample, seconds=exact_s * float(1 + noise * random.standard_normal())))
    return found


@cache
def plain_fit() -> Fit:
    return fit_rates(samples(), WORK)


def test_rates_are_found_again() -> None:
    fit = plain_fit()
    assert fit.error_p95 < 0.005
    assert fit.rates.bytes_per_s == pytest.approx(TRUE.bytes_per_s, rel=0.05)
    assert fit.rates.flops_per_s == pytest.approx(TRUE.flops_per_s, rel=0.05)
    assert fit.rates.step_s == pytest.approx(TRUE.step_s, rel=0.02)
    assert fit.rates.block_s == pytest.approx(TRUE.block_s, rel=0.05)
    assert fit.rates.overlaps_reads


def test_what_is_done_in_turn_is_seen() -> None:
    true = replace(TRUE, overlaps_reads=False)
    fit = fit_rates(samples(rates=true), WORK)
    assert not fit.rates.overlaps_reads
    assert fit.error_p95 < 0.005
    assert fit.rates.bytes_per_s == pytest.approx(TRUE.bytes_per_s, rel=0.05)
    assert fit.rates.flops_per_s == pytest.approx(TRUE.flops_per_s, rel=0.05)


def test_steps_that_something_ran_beside_hardly_count() -> None:
    found = [
        replace(item, seconds=item.seconds * 5) if number % 10 == 0 else item for number, item in enumerate(samples())
    ]
    fit = fit_rates(found, WORK)
    assert fit.error_p50 < 0.03
    exact = np.array([price_s(item, StepPricer(WORK, TRUE)) for item in samples()])
    fitted = np.array([price_s(item, StepPricer(WORK, fit.rates)) for item in samples()])
    assert np.median(np.abs(fitted / exact - 1)) < 0.03


def test_noise_stays_noise() -> None:
    fit = fit_rates(samples(noise=0.1), WORK)
    assert 0.03 < fit.error_p50 < 0.12
    exact = np.array([price_s(item, StepPricer(WORK, TRUE)) for item in samples()])
    fitted = np.array([price_s(item, StepPricer(WORK, fit.rates)) for item in samples()])
    assert np.median(np.abs(fitted / exact - 1)) < 0.05


def test_errors_are_told_by_kind_of_step() -> None:
    mixed = [
        (RowShape(chain=0, start=0, tokens=tokens, samples=True), RowShape(chain=2, start=30, tokens=1, samples=True))
        for tokens in (8, 32, 64, 100)
    ]
    pricer = StepPricer(WORK, TRUE)
    slow = [Sample(rows=rows, seconds=1.0) for rows in mixed]
    slow = [replace(item, seconds=1.25 * price_s(item, pricer)) for item in slow]
    assert {item.kind for item in slow} == {"mixed"}
    fit = fit_rates([*samples(), *samples(), *samples(), *slow], WORK)
    assert set(fit.kinds) == {"decode", "prompt", "mixed"}
    assert sum(own.samples for own in fit.kinds.values()) == fit.samples
    assert fit.kinds["mixed"].samples == len(slow)
    assert -0.25 < fit.kinds["mixed"].bias < -0.1
    assert abs(fit.kinds["decode"].bias) < 0.05


def test_other_shapes_are_told_by_what_was_fitted() -> None:
    fit = plain_fit()
    rows = tuple(RowShape(chain=i % 5, start=70, tokens=1, samples=True) for i in range(7))
    other = Sample(rows=rows, seconds=1.0)
    assert price_s(other, StepPricer(WORK, fit.rates)) == pytest.approx(
        price_s(other, StepPricer(WORK, TRUE)), rel=0.02
    )


def test_least_squares_without_negatives() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        matrix = random.standard_normal((20, 5))
        target = random.standard_normal(20)
        x = nonnegative_least_squares(matrix, target)
        gradient = matrix.T @ (target - matrix @ x)
        assert (x >= 0).all()
        # Kuhn-Tucker: no growth helps, and what is above 0 is at its best.
        assert (gradient <= 1e-7).all()
        assert np.abs(gradient[x > 0]).max(initial=0) < 1e-7


def test_nothing_measured() -> None:
    with pytest.raises(ValueError, match="no step"):
        fit_rates([], WORK)


def test_profiles_come_back(tmp_path: Path) -> None:
    made = profile_of(plain_fit(), device="cpu", machine={"torch": "2"}, structures=("b", "a"))
    write_profile(made, tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == made
    assert made.structures == ("a", "b")
    assert set(made.kinds) == {"decode", "prompt"}
    assert made.device_rates.side_rates == pytest.approx(plain_fit().rates.side_rates)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"step_s":', '"step":'),
        lambda text: text.replace('"format_version":2', '"format_version":1'),
        lambda text: json.dumps({**json.loads(text), "rates": {**json.loads(text)["rates"], "bytes_per_s": -1.0}}),
    ],
)
def test_damaged_profiles_are_refused(tmp_path: Path, damage) -> None:
    path = tmp_path / "p.json"
    write_profile(profile_of(plain_fit(), device="cpu", machine={}, structures=()), path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DiagnosticError) as caught:
        read_profile(path)
    assert [item.code.id for item in caught.value.diagnostics] == ["BC505"]


def test_profiles_from_before_kinds_were_told_are_read(tmp_path: Path) -> None:
    made = profile_of(plain_fit(), device="cpu", machine={}, structures=())
    path = tmp_path / "p.json"
    path.write_text(json.dumps(made.model_dump(mode="json", exclude={"kinds"})))
    assert read_profile(path).device_rates == made.device_rates


def test_profiles_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError) as caught:
        read_profile(tmp_path / "none.json")
    assert [item.code.id for item in caught.value.diagnostics] == ["BC003"]
