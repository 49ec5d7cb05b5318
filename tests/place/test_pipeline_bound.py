"""What is said to be the least of plans with pipelines is no more than any plan has, and more than bytes alone say."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from blockc.cost import DeviceRates
from blockc.diag import Diagnostics
from blockc.place import PlaceProblem, PlaceRule, PlaceSpeed, place
from blockc.place.bound import devices_bound
from blockc.place.cells import WIDTHS, Views
from blockc.place.place import goes_by_traffic
from blockc.place.stages.bound import least_of_stages, stages_bound
from blockc.place.stages.parts import Parts
from blockc.place.stages.pipelines import Pipeline, judged, staged_chains
from blockc.place.stages.rest import rest_of
from tests.place.pipelines import fleet, part, random_fleet

FAST = PlaceSpeed(rates=DeviceRates(flops_per_s=400e12, bytes_per_s=3e12), link_bytes_per_s=400e9)


def mixed(given: PlaceProblem, seed: int) -> PlaceProblem:
    """Some devices are faster, and all have prices."""
    generator = random.Random(seed)
    faster = {own.node for own in given.devices if generator.random() < 0.4}
    return replace(
        given,
        devices=tuple(
            replace(
                own,
                kind="h100_80g" if own.node in faster else own.kind,
                price_per_hour=Fraction(7 if own.node in faster else 3, 2),
            )
            for own in given.devices
        ),
        speeds={**given.speeds, "h100_80g": FAST},
        objective=("cost", "peak_load") if generator.random() < 0.6 else given.objective,
    )


@pytest.mark.parametrize("seed", range(8))
def test_no_plan_has_less_than_the_bound(seed: int) -> None:
    given = random_fleet(seed) if seed % 2 else mixed(random_fleet(seed), seed)
    placement = place(given, diags=Diagnostics())
    assert placement is not None
    views = Views(problem=given)
    divided = frozenset(staged_chains(views))
    rest = placement.solver if len(divided) < len(given.chains) else None
    # Not cut off at what the plan has, as the plan's own is.
    if rest is not None and not goes_by_traffic(rest_of(given, divided, ())):
        rest = rest.model_copy(update={"values": ()})
    found = stages_bound(views, divided, rest, 1e9)
    assert found.value <= placement.solver.value
    assert placement.solver.bound == found.value
    assert placement.solver.bound_kind == found.kind


def every_pipeline(given: PlaceProblem, chains: tuple[int, ...]) -> Iterator[Pipeline]:
    """On the first devices of each kind: any width, any number of stages and copies."""
    kinds = {
        own.kind: [at for at, other in enumerate(given.devices) if other.kind == own.kind] for own in given.devices
    }
    for devices in kinds.values():
        for width in WIDTHS[:3]:
            every = [tuple(devices[at : at + width]) for at in range(0, len(devices) - width + 1, width)]
            cells = [cell for cell in every if len({given.devices[device].node for device in cell}) == 1]
            parts = Parts(given, chains, width)
            for copies in range(1, 5):
                for stages in range(2, len(cells) // copies + 1):
                    own = [tuple(cells[n * stages : (n + 1) * stages]) for n in range(copies)]
                    found = judged(given, parts, own)
                    if found is not None:
                        yield found


@pytest.mark.parametrize("rates", [(1.0,), (5.0,), (11.0,), (2.0, 3.0), (0.0, 4.0)])
def test_pipelines_of_any_shape_have_no_fewer_devices(rates: Sequence[float]) -> None:
    loads = [[part(f"{at}", rate)] if rate else [] for at, rate in enumerate(rates)]
    slow = fleet([("a", [18] * 12)] * len(rates), loads, nodes=(8, 8), link=300e9, side_bytes=10**8)
    given = replace(
        slow,
        devices=(*slow.devices, *(replace(d, address=f"f{d.address}", kind="h100_80g") for d in slow.devices)),
        speeds={**slow.speeds, "h100_80g": FAST},
    )
    chains = tuple(range(len(rates)))
    least = least_of_stages(given, chains, "devices")
    shapes = [len(own.devices) for own in every_pipeline(given, chains)]
    assert least <= min(shapes)
    assert least >= 3, "it has 216 GB"


@pytest.mark.parametrize("rate", [3, 4, 6, 9, 12])
def test_the_bound_by_work_is_near(rate: float) -> None:
    given = fleet([("a", [10] * 12)], [[part("p", rate)]], nodes=(1,) * 16)
    fewest = min(len(own.devices) for own in every_pipeline(given, (0,)))
    assert fewest - 1 <= least_of_stages(given, (0,), "devices") <= fewest


def test_work_and_replicas_count_where_bytes_do_not() -> None:
    given = fleet([("a", [10] * 12)], [[part("p", 8)]], nodes=(1,) * 8)
    placement = place(given, diags=Diagnostics())
    assert placement is not None
    assert devices_bound(Views(problem=given).at(1)) == 2
    assert (placement.solver.bound, placement.solver.value, placement.solver.bound_kind) == (5, 6, "stages")
    rule = PlaceRule(kind="replicas", chains=(0,), count=3, text="three of p", span=None)
    copied = place(replace(given, rules=(rule,)), diags=Diagnostics())
    assert copied is not None
    assert copied.solver.bound == copied.solver.value == 6
    assert copied.solver.status == "optimal"


def test_what_stands_beside_is_added() -> None:
    given = fleet([("a", [10] * 12), ("x", [10] * 3)], [[part("p", 1)], [part("q", 16)]], nodes=(1,) * 6)
    placement = place(given, diags=Diagnostics())
    assert placement is not None
    assert devices_bound(Views(problem=given).at(1)) == 2
    assert placement.solver.bound == placement.solver.value > 3
