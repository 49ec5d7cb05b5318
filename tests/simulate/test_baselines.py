"""Baselines: what each shares, what it needs, and that they serve the same requests."""

from __future__ import annotations

import pytest

from blockc.cost import plan_work
from blockc.diag import Diagnostics
from blockc.simulate import Fleet, Load, fleet_of, generate, rates_of, report, simulate
from blockc.simulate.baselines import BASELINES
from blockc.simulate.baselines import baseline as made
from tests.plan.fleet import fleet_plan

PLAN = fleet_plan(adapters=4, apps=[("acme", f"app{chain}", chain) for chain in range(6)])
DIAGS = Diagnostics()
RATES = rates_of(PLAN, diags=DIAGS)
LOAD = generate(
    [Load(app=app, rate_rps=20.0, prompt_tokens=30, output_tokens=12) for app in range(6)], seconds=3.0, seed=1
)


def baseline(name: str, plan=PLAN) -> Fleet:
    found = made(name, plan, RATES, diags=DIAGS)
    assert found is not None
    return found


def weights_of(plan) -> int:
    return sum(entry.weights_bytes for entry in plan.memory)


def test_weights_are_those_of_what_is_shared() -> None:
    ours = fleet_of(PLAN, RATES)
    ps, pm = baseline("ps"), baseline("pm")
    one = pm.weights_bytes / 6
    sides = ours.weights_bytes - weights_of(PLAN)
    assert ps.weights_bytes == pytest.approx(2 * one + sides, abs=8)  # the base's path and the checkpoint's
    assert weights_of(PLAN) < 2 * one
    assert weights_of(PLAN) > one
    assert baseline("no-batching").weights_bytes == ours.weights_bytes


def test_launches_are_those_of_what_is_shared() -> None:
    everyone = dict.fromkeys(range(6), 1)
    price = {
        name: fleet.instances[0].pricer.launches(everyone, everyone)
        for name, fleet in (("ours", fleet_of(PLAN, RATES)), *((name, baseline(name)) for name in BASELINES))
    }
    work = plan_work(PLAN)
    read = sum(work.segments[s].read_bytes + work.segments[s].row_read_bytes for s in (0, 1, 3))
    blocks = sum(work.segments[s].blocks for s in (0, 1, 3))
    rates = RATES["cpu"]
    one = (read / rates.bytes_per_s + blocks * rates.block_s) * 1e15
    sides = 4 * work.chains[2].side_bytes / rates.bytes_per_s * 1e15
    assert price["pm"] == pytest.approx(6 * one, rel=1e-6)
    assert price["no-batching"] == pytest.approx(6 * one + sides, rel=1e-6)
    assert price["no-sharing"] == price["no-batching"]
    assert price["ps"] == pytest.approx(2 * one + sides, rel=1e-6)
    assert one + sides < price["ours"] < price["ps"]
    assert price["no-cache"] == price["ours"]


@pytest.mark.parametrize("name", [None, *BASELINES])
def test_all_serve_the_same_requests(name: str | None) -> None:
    fleet = fleet_of(PLAN, RATES) if name is None else baseline(name)
    found = report(simulate(fleet, LOAD), {})
    assert found.total.requests == len(LOAD.arrivals)
    assert found.total.refused == sum(item.prompt_tokens > 127 for item in LOAD.arrivals)


def test_only_the_cache_forgets_conversations() -> None:
    talk = generate(
        [Load(app=0, rate_rps=3.0, prompt_tokens=20, output_tokens=8, turns=3.0, think_s=0.1)], seconds=5.0, seed=2
    )
    kept, forgot = (report(simulate(fleet, talk), {}) for fleet in (fleet_of(PLAN, RATES), baseline("no-cache")))
    assert kept.total.cached_tokens > 0
    assert forgot.total.cached_tokens == 0
    assert forgot.total.output_tokens == kept.total.output_tokens


def test_a_baseline_gets_as_many_devices_as_it_needs() -> None:
    tight = fleet_plan(adapters=12, memory_bytes=2 << 20, apps=[("acme", f"app{chain}", chain) for chain in range(14)])
    pm = baseline("pm", tight)
    assert pm.devices > len(tight.instances) == 1
    assert {app.instances for app in pm.apps} == {(index,) for index in range(pm.devices)}
    for instance in pm.instances:
        pages = {index: group.pages for index, group in enumerate(instance.limits.groups)}
        assert all(count * 16 >= 128 for count in pages.values())


def test_what_fits_nowhere_is_said() -> None:
    small = PLAN.devices[0].model_copy(update={"memory_bytes": PLAN.memory[0].workspace_bytes + (1 << 18) + 4096})
    diags = Diagnostics()
    assert made("pm", PLAN.model_copy(update={"devices": (small,)}), RATES, diags=diags) is None
    assert [item.code.id for item in diags] == ["BC401"]
