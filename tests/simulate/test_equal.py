"""Equal devices: everything is served, memory holds, hot models get replicas, and every way plays by one rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockc.diag import Diagnostics
from blockc.plan import DeviceEntry, ExecutionPlan
from blockc.simulate import Fleet, Targets, generate, power_law, rates_of, report, simulate
from blockc.simulate.baselines import LESS
from blockc.simulate.cells import Cell, device_bytes, least_pages, pages_bytes
from blockc.simulate.equal import RANDOM, demand_of, equal_fleets, judge_of
from blockc.simulate.fleet import network_of
from blockc.simulate.robust import robust_cases
from blockc.simulate.stored import ways
from tests.plan.fleet import fleet_plan

NAMES = ("pm", "ps", "no-sharing", *LESS, RANDOM)


def cluster(devices: int, *, memory_bytes: int = 8 << 20) -> ExecutionPlan:
    """Six apps of one base, two adapters of another path; one device is used by the plan, all by what is compared."""
    plan = fleet_plan(
        adapters=4, apps=[("acme", f"app{chain}", chain) for chain in range(6)], memory_bytes=memory_bytes
    )
    own = plan.devices[0]
    more = tuple(
        DeviceEntry(
            address=f"n{index // 2}/d{index}", node=f"n{index // 2}", kind=own.kind, memory_bytes=own.memory_bytes,
            reserve_bytes=own.reserve_bytes,
        )
        for index in range(devices)
    )  # fmt: skip
    nodes = tuple(sorted({device.node for device in more}))
    return plan.model_copy(update={"devices": more, "nodes": nodes})


PLAN = cluster(4)
LOAD = generate(power_law(6, rate_rps=300.0, skew=1.5, prompt_tokens=40, output_tokens=16), seconds=0.4, seed=1)
TARGETS = {app.address: Targets(ttft_s=1.0) for app in PLAN.apps}
DIAGS = Diagnostics()
RATES = rates_of(PLAN, diags=DIAGS)


def made(plan: ExecutionPlan = PLAN, names=NAMES) -> dict[str, Fleet]:
    found = equal_fleets(plan, RATES, names, LOAD, judge_of(LOAD, TARGETS), diags=DIAGS)
    assert not DIAGS.has_errors
    return {fleet.label: fleet for fleet in found}


@pytest.fixture(scope="module")
def fleets() -> dict[str, Fleet]:
    return made()


def test_all_are_there_and_the_same_again(fleets: dict[str, Fleet]) -> None:
    assert list(fleets) == ["ours", *NAMES]
    again = made(names=("pm", RANDOM))
    for label, fleet in again.items():
        assert [app.instances for app in fleet.apps] == [app.instances for app in fleets[label].apps]
        assert [item.limits for item in fleet.instances] == [item.limits for item in fleets[label].instances]


@pytest.mark.parametrize("label", ["ours", "pm", RANDOM])
def test_devices_of_a_node_are_joined_as_in_a_plan(fleets: dict[str, Fleet], label: str) -> None:
    assert fleets[label].network.within == network_of(PLAN, [(0,)]).within


@pytest.mark.parametrize("label", ["ours", *NAMES])
def test_everything_is_served_on_every_device(fleets: dict[str, Fleet], label: str) -> None:
    fleet = fleets[label]
    assert fleet.devices == 4
    found = report(simulate(fleet, LOAD), TARGETS)
    assert found.total.requests == len(LOAD.arrivals)
    assert found.total.refused == sum(item.prompt_tokens > 127 for item in LOAD.arrivals)


@pytest.mark.parametrize("label", ["ours", "pm", "ps", RANDOM])
def test_what_a_device_holds_fits_it(fleets: dict[str, Fleet], label: str) -> None:
    stored = ways(PLAN)["ours" if label == RANDOM else label].stored
    fleet = fleets[label]
    for index, instance in enumerate(fleet.instances):
        chains = sorted({app.chain for app in fleet.apps if index in app.instances})
        units: dict[str, int] = {}
        for chain in chains:
            units |= stored[chain].units
        weights = sum(units.values()) + sum(stored[chain].own_bytes for chain in chains)
        pages = {group: item.pages for group, item in enumerate(instance.limits.groups) if item.pages}
        assert all(pages[group] >= count for group, count in least_pages(PLAN, chains).items())
        assert weights + pages_bytes(PLAN, pages, 1) <= device_bytes(PLAN)


def test_the_hottest_model_gets_replicas(fleets: dict[str, Fleet]) -> None:
    for label in ("ours", "pm", "ps"):
        copies = [len(app.instances) for app in fleets[label].apps]
        assert copies[0] == max(copies)
        assert copies[0] > 1
        assert all(len(set(app.instances)) == len(app.instances) for app in fleets[label].apps)


def test_a_random_placement_has_as_many_replicas(fleets: dict[str, Fleet]) -> None:
    ours, drawn = fleets["ours"], fleets[RANDOM]
    assert [len(app.instances) for app in ours.apps] == [len(app.instances) for app in drawn.apps]


def test_a_replica_of_ours_adds_what_is_not_there_yet() -> None:
    stored = ways(PLAN)
    alone = [sum(model.nbytes for model in stored[label].stored) for label in ("ours", "ps", "pm")]
    cells = {}
    for label in ("ours", "ps", "pm"):
        cell = Cell(width=1, offered_bytes=1 << 40)
        for chain, model in enumerate(stored[label].stored):
            assert cell.added_bytes(model) <= model.nbytes
            cell.take(chain, model)
        cells[label] = cell.weights_bytes
    assert cells["ours"] < cells["ps"] < cells["pm"] == alone[2]
    placed = sum(entry.weights_bytes + entry.sides_bytes for entry in PLAN.memory)
    assert cells["ours"] == pytest.approx(placed, abs=512)  # the prelude's table, which the fixture does not place


def test_what_fits_nowhere_is_said() -> None:
    one = cluster(1, memory_bytes=(1 << 20) + (1 << 18))
    diags = Diagnostics()
    found = equal_fleets(one, RATES, ("pm",), LOAD, judge_of(LOAD, TARGETS), diags=diags)
    assert [fleet.label for fleet in found] == ["ours"]
    assert [item.code.id for item in diags] == ["BC401"]


def test_demand_is_the_load_on_average() -> None:
    demand = demand_of(PLAN, LOAD)
    assert sum(item.rate_rps for item in demand) == pytest.approx(len(LOAD.arrivals) / LOAD.horizon_s)
    assert sum(item.rate_rps * item.prompt_tokens for item in demand) * LOAD.horizon_s == pytest.approx(
        sum(item.prompt_tokens for item in LOAD.arrivals)
    )


def test_robust_cases_ask_more_or_are_slower() -> None:
    fleet = made(names=())["ours"]
    cases = robust_cases(fleet, lambda seed: replace(LOAD, source=f"seed {seed}"))
    assert [own.label for own, _ in cases] == [
        "ours", "ours, 1.5 x rates", "ours, 1.5 x costs", "ours, 1.5 x rates and 1.5 x costs",
    ]  # fmt: skip
    assert [load(7).horizon_s for _, load in cases] == pytest.approx(
        [LOAD.horizon_s, LOAD.horizon_s / 1.5, LOAD.horizon_s, LOAD.horizon_s / 1.5]
    )
    rows = {0: 4}
    prices = [own.instances[0].pricer.launches(rows, rows) for own, _ in cases]
    assert prices == pytest.approx([prices[0], prices[0], 1.5 * prices[0], 1.5 * prices[0]], rel=1e-9)
