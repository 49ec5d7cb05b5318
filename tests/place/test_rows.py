"""Steps that take few requests come more often, and placement pays for their sweeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockc.diag import Diagnostics
from blockc.place import Placement, PlaceProblem, place
from blockc.place.cells import Views
from blockc.place.evaluate import evaluate
from blockc.place.traffic.aggregate import aggregate, closed_form
from blockc.place.traffic.flat import least_spent
from blockc.place.traffic.goals import values
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.packing import PackedCell, busy_parts, devices_of, packing_problem
from blockc.place.traffic.shares import shares_of
from blockc.place.traffic.units import packing_of
from tests.place.loads import every_packing, load, loaded, random_loaded


def given(rate: float, *, rows: int, output: int = 128, devices: int = 1, **more: object) -> PlaceProblem:
    problem = loaded([4.0], [(0,)], [load(rate, prompt=512, output=output)], nodes=(devices,), link=None, **more)  # type: ignore[arg-type]
    return replace(problem, max_rows=rows, max_batched_tokens=2048)


def found(problem: PlaceProblem) -> tuple[Placement | None, list[str]]:
    diags = Diagnostics()
    placement = place(problem, diags=diags)
    assert placement is None or evaluate(problem, placement) == ()
    return placement, [item.code.id for item in diags]


@pytest.mark.parametrize(("rate", "rows", "is_short"), [(8.0, 16, True), (12.0, 256, False), (0.5, 4, False)])
def test_steps_that_are_too_small_are_named_with_places_that_are_enough(rate: float, rows: int, is_short: bool) -> None:
    problem, diags = given(rate, rows=rows), Diagnostics()
    placement = place(problem, diags=diags)
    assert placement is not None
    own = placement.instances[0].load
    assert own is not None
    assert own.cadence_s is not None
    assert own.cadence_s == pytest.approx(min(0.05, rows / (rate * 128)), rel=1e-4)
    assert own.rows < rows
    short = [item for item in diags if item.code.id == "BC406"]
    assert bool(short) == is_short
    if short:
        enough = int((short[0].help or "").split("max_num_seqs = ")[1].split("`")[0].split()[0])
        placement, codes = found(replace(problem, max_rows=enough))
        assert placement is not None
        assert "BC406" not in codes
        assert placement.instances[0].load is not None
        assert placement.instances[0].load.cadence_s == 0.05


def test_few_places_cost_devices_and_no_device_has_more_at_once_than_it_takes() -> None:
    needed = []
    for rows in (256, 64, 16, 6):
        placement, _ = found(given(30.0, rows=rows, devices=8))
        assert placement is not None
        assert all(item.load is not None and item.load.rows <= rows for item in placement.instances)
        needed.append(placement.solver.value)
    assert needed == sorted(needed)
    assert needed[0] < needed[-1]
    placement, codes = found(given(30.0, rows=6))
    assert placement is None
    assert codes == ["BC402"]


@pytest.mark.parametrize("seed", range(24))
def test_packings_in_full_steps_hold_and_bounds_are_bounds(seed: int) -> None:
    problem = replace(random_loaded(seed, most_models=4, nodes=(3,)), max_rows=1 + seed % 4)
    packing = packing_of(Views(problem=problem))
    placement, _ = found(problem)
    fewest = every_packing(packing)
    cells = multi_start(packing, 10)
    if placement is None:
        assert fewest is None
        return
    least = placement.solver.value
    assert fewest is None or least <= fewest
    assert placement.solver.bound <= least
    assert closed_form(packing).value <= least
    counted = aggregate(packing, units=0.2, least=1, most=packing.devices, seed=7)
    assert not counted.infeasible
    assert counted.value <= least
    exact = least_spent(packing, None, least=1, units=0.3, seed=7, gap=0.0)
    assert exact.bound <= least
    if cells is not None:
        assert packing_problem(packing, cells) is None
        assert not exact.infeasible
        assert least <= devices_of(cells)
        assert values(packing, cells)[0] >= exact.bound
        for own in shares_of(packing, cells).values():
            assert sum(own.values()) == pytest.approx(1.0)


def test_a_cell_is_as_busy_as_its_sweeps_in_full_steps() -> None:
    problem = given(12.0, rows=8)
    packing = packing_of(Views(problem=problem))
    (units,) = (group.units for group in packing.groups)
    cell = PackedCell(kind=0, devices=(0,), units=((0, units),))
    kind = packing.kinds[0]
    sweep_s = (kind.item_ns[0] + kind.step_ns) / 1e9
    swept = busy_parts(packing, cell) - units * kind.unit_parts[0]
    assert swept / 1e7 == pytest.approx(sweep_s * 12 * 128 / 8, rel=1e-3)
    assert packing.paced_parts(kind, 0, units) == pytest.approx(busy_parts(packing, cell), rel=1e-4)
