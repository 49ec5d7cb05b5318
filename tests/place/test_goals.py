"""What a spec wants little of comes first: devices, money, traffic between devices, bytes, the busiest cell."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from fractions import Fraction

import pytest

from blockc.cost import DeviceRates
from blockc.diag import Diagnostics
from blockc.place import PlaceDevice, Placement, PlaceProblem, PlaceRule, PlaceSpeed, place
from blockc.place.cells import Views
from blockc.place.evaluate import evaluate
from blockc.place.traffic.aggregate import aggregate, closed_form
from blockc.place.traffic.flat import fits_flat, least_of_others, least_spent
from blockc.place.traffic.goals import most_spent, next_sum, spent, values, weights
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.improve import improve
from blockc.place.traffic.packing import PackedCell, Packing, packing_problem
from blockc.place.traffic.units import packing_of
from tests.place.loads import GB, RATES, load, loaded, random_loaded

# Half as fast as the A100s of the other devices.
SLOW = DeviceRates(flops_per_s=RATES.flops_per_s / 2, bytes_per_s=RATES.bytes_per_s / 2)


def mixed(given: PlaceProblem, *, prices: tuple[str, str], objective: tuple[str, ...]) -> PlaceProblem:
    """As many slow devices of 48 GB beside those that there are, on nodes of their own."""
    fast = tuple(replace(device, price_per_hour=Fraction(prices[0])) for device in given.devices)
    slow = tuple(
        PlaceDevice(
            address=f"s{device.address}", kind="slow", memory_bytes=48 * GB, reserve_bytes=0,
            price_per_hour=Fraction(prices[1]),
        )
        for device in given.devices
    )  # fmt: skip
    speeds = {**given.speeds, "slow": PlaceSpeed(rates=SLOW, link_bytes_per_s=30e9)}
    return replace(given, devices=fast + slow, speeds=speeds, objective=objective)


def placed(given: PlaceProblem) -> Placement:
    found = place(given, diags=Diagnostics())
    assert found is not None
    assert evaluate(given, found) == ()
    return found


def kinds(given: PlaceProblem, placement: Placement) -> list[str]:
    return sorted(given.devices[device].kind for item in placement.instances for device in item.devices)


def test_devices_are_chosen_by_price_where_cost_comes_first() -> None:
    light = loaded([4.0, 1.0, 1.0], [(0, 1), (0, 2)], [load(0.5)] * 2, nodes=(2,))
    heavy = loaded([14.0, 1.0, 1.0], [(0, 1), (0, 2)], [load(9)] * 2, nodes=(3,), link=None)
    cheap = placed(mixed(light, prices=("4", "0.8"), objective=("cost", "peak_load")))
    assert kinds(mixed(light, prices=("4", "0.8"), objective=()), cheap) == ["slow"]
    assert (cheap.solver.value, cheap.solver.bound) == (0.8, 0.8)
    assert cheap.price is not None
    assert cheap.price.per_hour == 0.8
    few = placed(mixed(heavy, prices=("4", "0.8"), objective=("devices", "peak_load")))
    less = placed(mixed(heavy, prices=("4", "0.8"), objective=("cost", "peak_load")))
    assert few.price is not None
    assert less.price is not None
    assert less.price.per_hour == less.solver.value < few.price.per_hour
    assert len(kinds(mixed(heavy, prices=("4", "0.8"), objective=()), less)) > few.solver.value
    # Where the fast ones are cheap for what they do, both agree.
    fast = placed(mixed(heavy, prices=("1", "0.9"), objective=("cost", "peak_load")))
    assert fast.solver.value == few.solver.value


def test_of_as_few_devices_the_cheaper_ones() -> None:
    light = loaded([4.0, 1.0], [(0, 1)], [load(0.5)], nodes=(2,))
    given = mixed(light, prices=("4", "0.8"), objective=("devices", "cost", "peak_load"))
    found = placed(given)
    assert kinds(given, found) == ["slow"]
    assert found.solver.values[:2] == (1.0, 0.8)


def test_the_busiest_cell_first_uses_what_there_is() -> None:
    given = loaded([4.0, 1.0, 1.0], [(0, 1), (0, 2)], [load(4)] * 2, nodes=(4,), link=None)
    few, level = placed(given), placed(replace(given, objective=("peak_load", "devices")))
    assert few.solver.value == 1
    peaks = [
        max(item.load.traffic + item.load.sweeps for item in found.instances if item.load is not None)
        for found in (few, level)
    ]
    assert peaks[1] < 0.7 * peaks[0]
    assert level.solver.bound <= level.solver.value == pytest.approx(peaks[1], abs=1e-5)
    near = placed(replace(given, objective=("slo", "devices")))
    assert near.solver.value == pytest.approx(level.solver.value / 0.8, rel=0.02), "all may be busy for 80 %"


def test_less_is_sent_where_that_is_asked_for() -> None:
    """On two devices of a node either a cell of both, or one each: then nothing is sent."""
    given = loaded([14.0, 14.0], [(0,), (1,)], [load(4)] * 2, nodes=(2,))
    for objective in (("devices", "communication", "peak_load"), ("devices", "communication", "memory", "peak_load")):
        found = placed(replace(given, objective=objective))
        assert found.solver.values[:2] == (2.0, 0.0)


def test_the_checker_sees_wrong_figures() -> None:
    light = loaded([4.0, 1.0], [(0, 1)], [load(0.5)], nodes=(2,))
    given = mixed(light, prices=("4", "0.8"), objective=("cost", "peak_load"))
    found = placed(given)
    for update in ({"value": 0.7, "values": (0.7, found.solver.values[1])}, {"values": (0.8, 0.9)}, {"bound": 0.9}):
        assert evaluate(given, replace(found, solver=found.solver.model_copy(update=update)))
    large = loaded([30.0], [(0,)], [load(1, tpot_ms=22)], nodes=(2,))
    large = replace(large, objective=("devices", "communication", "peak_load"))
    wide = placed(large)
    assert wide.solver.values[1] > 0
    silent = wide.solver.model_copy(update={"values": (2.0, 0.0, wide.solver.values[2])})
    assert evaluate(large, replace(wide, solver=silent))


def test_other_ways_to_serve_cost_no_less() -> None:
    """Three fine-tunes that share most, three adapters on one base; PM and PS by what they need at least."""
    given = loaded([14.0, 1.0, 1.0, 1.0], [(0, 1), (0, 2), (0, 3)], [load(2)] * 3, nodes=(4,))
    priced = replace(given, devices=tuple(replace(item, price_per_hour=Fraction(5, 2)) for item in given.devices))
    price = placed(priced).price
    assert price is not None
    assert price.pm is not None
    assert price.pm == price.ps, "no two have the same base in full"
    assert price.per_hour <= (price.pm.found or 0)
    assert price.pm.least % 2.5 == 0
    adapters = loaded([14.0], [(0,)] * 3, [load(2)] * 3, nodes=(4,), side_bytes=10**8)
    adapters = replace(adapters, devices=priced.devices)
    price = placed(adapters).price
    assert price is not None
    assert price.pm is not None
    assert price.ps is not None
    assert price.per_hour == price.ps.found == price.ps.least, "the plan is one of theirs"
    assert price.ps.least < price.pm.least <= (price.pm.found or 0)
    assert placed(given).price is None
    twice = replace(adapters, rules=(PlaceRule(kind="replicas", chains=(0,), count=2, text="m0 twice"),))
    again = placed(twice).price
    assert again is not None
    assert again.ps is not None
    assert again.ps.found == again.per_hour == 5.0, "replicas are asked of every way to serve"


@pytest.mark.parametrize(
    ("weight", "value", "wanted"),
    [((1, 2), 7, 7), ((9, 18, 32), 14, 18), ((9, 18, 32), 33, 36), ((25, 25), 26, 50), ((4, 7), 17, 18), ((5,), 0, 0)],
)
def test_bounds_are_rounded_up_to_what_cells_can_add_up_to(weight: tuple[int, ...], value: int, wanted: int) -> None:
    assert next_sum(weight, value) == wanted


def cheapest(packing: Packing) -> tuple[int, ...] | None:
    """The best by all goals on single devices, each group whole: found by trying all."""
    kind_of = {device: block.kinds[0] for block in packing.blocks for device in block.devices}
    best = None
    for places in itertools.product(range(packing.devices), repeat=len(packing.groups)):
        cells = [
            PackedCell(
                kind=kind_of[device], devices=(device,),
                units=tuple((g, packing.groups[g].units) for g, place_ in enumerate(places) if place_ == device),
            )
            for device in sorted(set(places))
        ]  # fmt: skip
        value = values(packing, cells)
        if (best is None or value < best) and packing_problem(packing, cells) is None:
            best = value
    return best


ORDERS = (
    ("cost", "peak_load"),
    ("cost", "devices", "memory", "peak_load"),
    ("devices", "cost", "peak_load"),
    ("devices", "memory", "communication", "slo"),
)
PEAKS = (("peak_load", "cost"), ("slo", "devices"), ("devices", "communication", "peak_load"))


@pytest.mark.parametrize("seed", range(12))
def test_searches_and_bounds_agree_with_trying_all(seed: int) -> None:
    generator = random.Random(seed)
    prices = generator.choice([("4", "0.8"), ("2.5", "2"), ("1.999", "1"), ("3", "3")])
    base = replace(random_loaded(seed, most_models=4, nodes=(1, 1)), rules=())
    given = mixed(base, prices=prices, objective=ORDERS[seed % 4])
    packing = packing_of(Views(problem=given))
    packing = replace(packing, groups=tuple(replace(group, units=1) for group in packing.groups))
    best = cheapest(packing)
    bound, own = closed_form(packing), weights(packing)
    counted = aggregate(packing, units=0.5, least=1, most=most_spent(packing), seed=7)
    assert fits_flat(packing)
    found = least_spent(packing, None, least=1, units=5.0, seed=7, gap=0.0)
    assert (found.cells is None) == (best is None)
    if best is None:
        return
    assert found.cells is not None
    assert max(bound.value, counted.value) <= best[0] == spent(packing, found.cells)
    assert bound.value % min(own) == 0 or prices[0] != prices[1]
    others, _ = least_of_others(packing, found.cells, units=5.0, seed=7)
    assert packing_problem(packing, others) is None
    # Peaks are told apart in ten-thousandths only.
    assert values(packing, others)[:-1] == best[:-1]
    assert values(packing, others)[-1] <= best[-1] + 2_000
    cells = multi_start(packing, 8)
    if cells is not None:
        assert packing_problem(packing, cells) is None
        better = improve(packing, cells, rounds=80, least=1)
        assert packing_problem(packing, better) is None
        assert best[0] <= spent(packing, better) <= spent(packing, cells)


@pytest.mark.parametrize("seed", range(7))
def test_every_placement_of_mixed_devices_holds(seed: int) -> None:
    given = mixed(random_loaded(seed, nodes=(2, 2)), prices=("4", "0.8"), objective=(*ORDERS, *PEAKS)[seed % 7])
    found = place(given, diags=Diagnostics())
    if found is not None:
        assert evaluate(given, found) == ()
        assert found.solver.bound <= found.solver.value
        assert len(found.solver.values) == len(given.objective)
