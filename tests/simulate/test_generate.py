"""Generated loads: rates, bursts, shares, conversations, seeds."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace
from fractions import Fraction

import pytest

from blockc.diag import Diagnostics
from blockc.simulate import Load, faster, first, generate, power_law, spec_loads
from blockc.spec.deployment import Traffic
from tests.support.deployments import deployment


def gaps(workload) -> list[float]:
    times = sorted(item.at_s for item in workload.arrivals if item.after is None)
    return [late - early for early, late in itertools.pairwise(times)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_rate_and_the_variation_that_was_asked_for(cv: float) -> None:
    load = Load(app=0, rate_rps=10.0, prompt_tokens=300, output_tokens=50, cv=cv)
    found = gaps(generate([load], seconds=2000.0, seed=1))
    assert statistics.mean(found) == pytest.approx(0.1, rel=0.1)
    assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(cv, rel=0.15)


def test_tokens_have_the_mean_that_was_asked_for() -> None:
    workload = generate([Load(app=0, rate_rps=20.0, prompt_tokens=300, output_tokens=50)], seconds=1000.0, seed=2)
    prompts = [item.prompt_tokens for item in workload.arrivals]
    assert statistics.mean(prompts) == pytest.approx(300, rel=0.05)
    assert statistics.stdev(prompts) / statistics.mean(prompts) == pytest.approx(1.0, rel=0.15)
    assert statistics.mean(item.output_tokens for item in workload.arrivals) == pytest.approx(50, rel=0.05)
    assert min(prompts) >= 1


def test_all_tokens_equal_without_spread() -> None:
    load = Load(app=0, rate_rps=5.0, prompt_tokens=300, output_tokens=50, spread=0.0)
    assert {(a.prompt_tokens, a.output_tokens) for a in generate([load], seconds=50.0, seed=1).arrivals} == {(300, 50)}


def test_power_law_over_apps() -> None:
    loads = power_law(3, rate_rps=11.0, skew=1.0, prompt_tokens=8, output_tokens=8)
    assert [load.rate_rps for load in loads] == pytest.approx([6.0, 3.0, 2.0])
    counts = [0, 0, 0]
    for item in generate(loads, seconds=1000.0, seed=5).arrivals:
        counts[item.app] += 1
    assert [count / 1000 for count in counts] == pytest.approx([6.0, 3.0, 2.0], rel=0.1)


def test_conversations_hold_what_was_said() -> None:
    load = Load(app=0, rate_rps=9.0, prompt_tokens=20, output_tokens=10, turns=3.0, think_s=4.0)
    workload = generate([load], seconds=1000.0, seed=7)
    followers = [item for item in workload.arrivals if item.after is not None]
    starts = len(workload.arrivals) - len(followers)
    assert len(workload.arrivals) / starts == pytest.approx(3.0, rel=0.1)
    assert len(workload.arrivals) / 1000 == pytest.approx(9.0, rel=0.1)
    assert statistics.mean(item.at_s for item in followers) == pytest.approx(4.0, rel=0.1)
    for number, item in enumerate(workload.arrivals):
        if item.after is not None:
            before = workload.arrivals[item.after]
            assert item.after < number
            assert item.prompt_tokens > before.prompt_tokens + before.output_tokens


def test_the_traffic_of_a_spec(tmp_path) -> None:
    plain = deployment(tmp_path, apps={"acme": {"chat": "base", "quiet": "base"}, "zoo": {"law": "base"}})
    traffic = {
        "chat": Traffic(rate_rps=Fraction(4), prompt_tokens=100, arrival_cv=Fraction(3)),
        "quiet": Traffic(),
        "law": Traffic(rate_rps=Fraction(1, 2), output_tokens=7),
    }
    tenants = {
        name: replace(tenant, apps=tuple(replace(app, traffic=traffic[app.name]) for app in tenant.apps))
        for name, tenant in plain.tenants.items()
    }
    options = {"prompt_tokens": 50, "output_tokens": 20, "cv": 1.0, "turns": 1.0, "think_s": 5.0}
    addresses = ["zoo/law", "acme/chat", "acme/quiet"]
    loads = spec_loads(replace(plain, tenants=tenants), addresses, diags=Diagnostics(), **options)
    assert {(load.app, load.rate_rps, load.prompt_tokens, load.output_tokens, load.cv) for load in loads} == {
        (1, 4.0, 100, 20, 3.0),
        (0, 0.5, 50, 7, 1.0),
    }


def test_a_seed_says_everything_and_apps_do_not_disturb_each_other() -> None:
    loads = power_law(3, rate_rps=5.0, skew=1.0, prompt_tokens=30, output_tokens=30, turns=2.0)
    assert generate(loads, seconds=60.0, seed=1) == generate(loads, seconds=60.0, seed=1)
    assert generate(loads, seconds=60.0, seed=1) != generate(loads, seconds=60.0, seed=2)
    own = [item for item in generate(loads, seconds=60.0, seed=1).arrivals if item.app == 1]
    alone = generate(loads[1:2], seconds=60.0, seed=1).arrivals
    assert [item.at_s for item in own] == [item.at_s for item in alone]


def test_faster_and_first() -> None:
    load = Load(app=0, rate_rps=4.0, prompt_tokens=8, output_tokens=8, turns=2.0)
    workload = generate([load], seconds=100.0, seed=1)
    twice = faster(workload, 2.0)
    assert twice.horizon_s == pytest.approx(workload.horizon_s / 2)
    assert [a.at_s for a in twice.arrivals if a.after is not None] == [
        a.at_s for a in workload.arrivals if a.after is not None
    ]
    short = first(workload, 50.0)
    assert 0 < len(short.arrivals) < len(workload.arrivals)
    for item in short.arrivals:
        if item.after is None:
            assert item.at_s <= 50.0
        else:
            before = short.arrivals[item.after]
            assert item.prompt_tokens > before.prompt_tokens + before.output_tokens
