"""Load that a plan has no place for is left out of what is judged, conversation by conversation, and said."""

from __future__ import annotations

import pytest

from blockc.simulate import Arrival, Load, Workload, generate, promised

LOADS = tuple(Load(app=app, rate_rps=2.0, prompt_tokens=20, output_tokens=8, turns=2.0) for app in range(3))
DRAWN = generate(LOADS, seconds=200.0, seed=3)


def starts(workload: Workload, app: int) -> list[float]:
    return [item.at_s for item in workload.arrivals if item.after is None and item.app == app]


def test_what_has_a_place_in_full_stays_as_it_is() -> None:
    assert promised(DRAWN, [1.0, 1.0, 1.0], 3) is DRAWN
    assert starts(promised(DRAWN, [1.0, 0.3, 1.0], 3), 2) == starts(DRAWN, 2)


def test_what_has_none_goes_and_is_counted() -> None:
    found = promised(DRAWN, [1.0, 0.0, 0.4], 3)
    assert starts(found, 1) == []
    assert len(starts(found, 2)) == pytest.approx(0.4 * len(starts(DRAWN, 2)), rel=0.25)
    asked = [sum(item.app == app for item in DRAWN.arrivals) for app in range(3)]
    kept = [sum(item.app == app for item in found.arrivals) for app in range(3)]
    assert found.shed == tuple(all_ - own for all_, own in zip(asked, kept, strict=True))


def test_conversations_stay_whole() -> None:
    """What was said before a turn is there whenever the turn is."""
    found = promised(DRAWN, [0.5, 0.5, 0.5], 3)
    turns = [item for item in found.arrivals if item.after is not None]
    assert turns
    for item in turns:
        assert item.after is not None
        before = found.arrivals[item.after]
        assert item.app == before.app
        assert item.prompt_tokens > before.prompt_tokens + before.output_tokens
    known = Workload(
        source="hashes",
        arrivals=tuple(
            Arrival(at_s=float(number), app=0, prompt_tokens=1500, output_tokens=5, blocks=(0, 1 + number % 20, number))
            for number in range(200)
        ),
    )
    talks = {item.blocks[1] for item in promised(known, [0.5], 0).arrivals}
    assert 0 < len(talks) < 20
    assert {item for item in known.arrivals if item.blocks[1] in talks} == set(promised(known, [0.5], 0).arrivals)


@pytest.mark.parametrize("seed", range(3))
def test_draws_are_an_apps_own(seed: int) -> None:
    """A greater part keeps all that a smaller one keeps, whatever the others have; another seed keeps others."""
    less, more = promised(DRAWN, [0.3, 1.0, 0.3], seed), promised(DRAWN, [0.6, 0.1, 0.3], seed)
    assert set(starts(less, 0)) < set(starts(more, 0))
    assert starts(less, 2) == starts(more, 2)
    assert starts(less, 0) == starts(promised(DRAWN, [0.3, 1.0, 0.3], seed), 0)
    assert starts(less, 0) != starts(promised(DRAWN, [0.3, 1.0, 0.3], seed + 1), 0)
