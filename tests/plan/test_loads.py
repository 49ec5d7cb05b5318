"""What a plan says of load, shares and search is checked like everything else."""

from __future__ import annotations

from typing import Any

import pytest

from blockc.plan import LoadEntry, SearchEntry
from blockc.plan.verify import plan_problem
from tests.plan.fleet import fleet_plan

LOAD = LoadEntry(cadence_s=0.05, traffic=0.2, sweeps=0.3, limit=0.8, rows=3.0, batches={0: 4})

FALLING = (SearchEntry(units=0, value=None, bound=2), SearchEntry(units=1, value=2, bound=1))


def problem(**changes: Any) -> str | None:
    plan = fleet_plan()
    instance = plan.instances[0].model_copy(update={"load": LOAD.model_copy(update=changes.pop("load", {}))})
    route = plan.routes[0].model_copy(update=changes.pop("route", {}))
    solver = plan.solver.model_copy(update=changes.pop("solver", {}))
    update = {"instances": (instance,), "routes": (route, *plan.routes[1:]), "solver": solver}
    return plan_problem(plan.model_copy(update=update))


def test_a_plan_with_loads_holds() -> None:
    assert problem() is None
    assert problem(route={"weights": (1.0,), "ttft_s": 0.3, "tpot_s": 0.05}) is None
    steps = (SearchEntry(units=0.0, value=None, bound=1.0), SearchEntry(units=1.0, value=2.0, bound=2.0))
    assert problem(solver={"history": steps, "moved_bytes": 0}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load": {"traffic": 0.6}}, "busier"),
        ({"load": {"limit": 1.5}}, "busier"),
        ({"load": {"rows": float("nan")}}, "no number"),
        ({"load": {"cadence_s": -1.0}}, "no number"),
        ({"load": {"batches": {99: 1}}}, "batches"),
        ({"load": {"batches": {0: 0}}}, "batches"),
        ({"route": {"weights": (0.5,)}}, "add up"),
        ({"route": {"weights": (0.5, 0.5)}}, "2 weights for 1"),
        ({"route": {"ttft_s": float("inf")}}, "times"),
        ({"route": {"alternatives": ((0,), (0,))}}, "twice"),
        ({"solver": {"moved_bytes": -1}}, "less than nothing"),
        (
            {
                "solver": {
                    "history": (SearchEntry(units=0, value=None, bound=2), SearchEntry(units=1, value=2, bound=1))
                }
            },
            "falls",
        ),
        ({"solver": {"history": (SearchEntry(units=-1, value=None, bound=2),)}}, "history"),
    ],
)
def test_contradictions_are_found(changes: dict[str, Any], words: str) -> None:
    found = problem(**changes)
    assert found is not None
    assert words in found
