"""The router of a plan: as the simulator's, by the prices that the plan carries."""

from __future__ import annotations

import random

import pytest

from blockc.cost import DeviceRates, with_prices
from blockc.diag import DiagnosticError
from blockc.plan import ExecutionPlan, dump_plan, parts_of, read_plan
from blockc.plan.verify import plan_problem
from blockc.simulate import fleet_of
from blockc.simulate import routing as simulated
from blockc_runtime.router import Ask, router_of
from tests.plan.fleet import fleet_plan
from tests.plan.spread import random_graph, spread


def rates(speed: float) -> DeviceRates:
    return DeviceRates(flops_per_s=speed * 1e12, bytes_per_s=speed * 1e11)


@pytest.fixture(scope="module")
def plan() -> ExecutionPlan:
    rng = random.Random(1)
    return with_prices(spread(random_graph(rng), rng), lambda kind, width: rates(1))


def test_where_there_is_a_choice_instances_have_prices(plan: ExecutionPlan) -> None:
    assert any(len(route.alternatives) > 1 for route in plan.routes)
    assert all(instance.prices is not None for instance in plan.instances)
    assert read_plan(dump_plan(plan), "plan") == plan
    assert all(part.plan.instances[0].prices is None for part in parts_of(plan))


def test_it_chooses_as_the_simulators(plan: ExecutionPlan) -> None:
    """The same asks, ends and times; only KV travels nowhere, and no prompts are alike here."""
    own = router_of(plan)
    other = simulated.router_of(fleet_of(plan, {device.kind: rates(1) for device in plan.devices}))
    assert own is not None
    assert other is not None
    rng = random.Random(3)
    open_, placed = [], set()
    for number in range(200):
        if open_ and rng.random() < 0.4:
            request = open_.pop(rng.randrange(len(open_)))
            for router in (own, other):
                router.started(request)
                router.ended(request, output_tokens=5)
        app = rng.randrange(len(plan.apps))
        asked = Ask(
            request=str(number), app=app, chain=plan.apps[app].chain, prompt_tokens=rng.choice([20, 90])
        )  # fmt: skip
        choice = own.route(asked, float(number))
        assert choice == other.route(asked, float(number))
        assert (choice.instance,) in plan.routes[asked.chain].alternatives
        placed.add(choice.instance)
        open_.append(asked.request)
    assert placed == set(range(len(plan.instances)))


def test_without_a_choice_there_is_no_router_and_nothing_is_priced() -> None:
    plan = fleet_plan(adapters=20, devices=6, memory_bytes=1300 << 10)
    assert len(plan.instances) > 1
    assert router_of(plan) is None
    assert with_prices(plan, lambda kind, width: rates(1)) is plan


def test_without_prices_the_plan_has_to_be_compiled_again(plan: ExecutionPlan) -> None:
    bare = plan.model_copy(
        update={"instances": tuple(item.model_copy(update={"prices": None}) for item in plan.instances)}
    )
    unknown = with_prices(bare, lambda kind, width: None)
    assert router_of(unknown) is not None  # devices alike, of which nothing is known, are told apart by their loads
    with pytest.raises(DiagnosticError, match="BC905") as caught:
        router_of(bare)
    assert "compile the spec again" in (next(iter(caught.value.diagnostics)).help or "")


def test_prices_are_of_the_rates_that_are_given(plan: ExecutionPlan) -> None:
    slow, quick = (with_prices(plan, lambda kind, width, speed=speed: rates(speed)) for speed in (1, 10))
    for a, b in zip(slow.instances, quick.instances, strict=True):
        assert a.prices is not None
        assert b.prices is not None
        assert a.prices.cache_tokens == b.prices.cache_tokens > 0
        assert all(a.prices.chains[chain].prompt_s > own.prompt_s for chain, own in b.prices.chains.items())
        assert all(a.prices.segment_s[segment] > cost_s for segment, cost_s in b.prices.segment_s.items())


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"step_s": -1.0}, "no numbers"),
        ({"step_s": float("nan")}, "no numbers"),
        ({"cache_tokens": -1}, "no numbers"),
        ({"segment_s": {}}, "other segments or chains"),
        ({"segment_s": {0: 1.0, 99: 1.0}}, "other segments or chains"),
        ({"chains": {}}, "other segments or chains"),
    ],
)
def test_prices_that_an_instance_cannot_have_are_found(changed, words: str, plan: ExecutionPlan) -> None:
    first, *others = plan.instances
    prices = first.prices.model_copy(update=changed)
    wrong = plan.model_copy(update={"instances": (first.model_copy(update={"prices": prices}), *others)})
    assert words in (plan_problem(wrong) or "")
