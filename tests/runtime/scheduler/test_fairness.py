"""Service between tenants: by weight while all have work, all of it to whoever has work, no credit for idling."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from blockc_runtime.request import Sampling, TokensEvent
from blockc_runtime.scheduler.fair_queue import LOGPROBS_COST, OUTPUT_COST, PROMPT_COST
from tests.conftest import Promised

from .harness import Run, limits, request


class Service:
    """A run in which request ``t-n`` is tenant t's n-th; counts what each tenant was served while all had work."""

    def __init__(self, weights, **changes):
        self.weights = weights
        self.run = Run(limits(pages=(100, 100), weights=weights, **changes), {"max_waiting": 10_000})
        self.served = dict.fromkeys(range(len(weights)), 0.0)
        self.sent = dict.fromkeys(range(len(weights)), 0)
        self.charged = set()

    def send(self, tenant, *, prompt_tokens, max_tokens):
        number = self.sent[tenant]
        self.sent[tenant] += 1
        prompt = [1000 * tenant + number % 997, *range(number, number + prompt_tokens - 1)]
        self.run.admit(request(f"{tenant}-{number}", prompt, app=tenant, group=f"g{tenant}", max_tokens=max_tokens))

    def step(self):
        before = len(self.run.log)
        step = self.run.step()
        for row in step.rows:
            if row.request not in self.charged:
                self.charged.add(row.request)
                own = self.run.scheduler._live.get(row.request)
                prompt_tokens = len(row.tokens) if own is None else len(own.request.prompt)
                self.served[self.tenant(row.request)] += PROMPT_COST * prompt_tokens
        for event in self.run.log[before:]:
            if isinstance(event, TokensEvent):
                self.served[self.tenant(event.request)] += OUTPUT_COST * len(event.tokens)
        return step

    def tenant(self, name):
        return int(name.split("-")[0])

    def all_backlogged(self):
        waiting = {item.tenant for item in self.run.scheduler._live.values() if item.state == "waiting"}
        return len(waiting) == len(self.weights)

    def shares(self):
        return [cost / weight for cost, weight in zip(self.served.values(), self.weights, strict=True)]


@pytest.mark.promise("fairness")
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.0, 1.0, 1.0), (1.0, 2.0, 4.0), (0.25, 0.5, 1.0)])
@pytest.mark.parametrize("max_rows", [1, 4, 8])
def test_backlogged_tenants_are_served_by_weight(weights, max_rows, promised: Promised):
    world = Service(weights, max_rows=max_rows, max_batched_tokens=16)
    rng = random.Random(7)
    for _ in range(200):
        for tenant in range(len(weights)):
            world.send(tenant, prompt_tokens=rng.randint(1, 12), max_tokens=rng.randint(1, 9))
    while world.all_backlogged():
        world.step()
    ratio = min(world.shares()) / max(world.shares())
    assert ratio >= 0.95
    if len(set(weights)) == 1:
        what, promise = f"{len(weights)} equal tenants", "min/max service >= 0.95"
    else:
        what, promise = f"weights {':'.join(f'{weight:g}' for weight in weights)}", "service by weight, within 5 %"
    promised(what, promise, f"{ratio:.3f} at {max_rows} rows", kept=ratio >= 0.95)


def test_service_counts_tokens_and_not_requests():
    world = Service((1.0, 1.0), max_rows=4, max_batched_tokens=32)
    for _ in range(120):
        world.send(0, prompt_tokens=40, max_tokens=2)
    for _ in range(600):
        world.send(1, prompt_tokens=2, max_tokens=4)
    while world.all_backlogged():
        world.step()
    assert min(world.shares()) / max(world.shares()) >= 0.95


def test_idling_earns_no_credit():
    world = Service((1.0, 1.0), max_rows=2)
    for _ in range(300):
        world.send(0, prompt_tokens=4, max_tokens=4)
    for _ in range(200):
        world.step()
    for _ in range(300):
        world.send(1, prompt_tokens=4, max_tokens=4)
    world.served = dict.fromkeys(world.served, 0.0)
    for _ in range(300):
        world.step()
    assert min(world.shares()) / max(world.shares()) >= 0.95


def test_whoever_has_work_gets_all_of_it():
    world = Service((1.0, 100.0), max_rows=4)
    for _ in range(20):
        world.send(0, prompt_tokens=3, max_tokens=5)
    for _ in range(20):
        assert len(world.step().rows) == 4


def test_a_newcomer_goes_before_a_backlog():
    world = Service((1.0, 1.0), max_rows=2, max_batched_tokens=64)
    for _ in range(200):
        world.send(0, prompt_tokens=30, max_tokens=5)
    for _ in range(20):
        world.step()
    world.send(1, prompt_tokens=5, max_tokens=3)
    served = [any(row.request == "1-0" for row in world.step().rows) for _ in range(20)]
    assert served.index(True) < 6, "one answer of the backlog has to end, no more"


def test_long_prompts_share_the_budget_with_short_ones():
    world = Service((1.0, 1.0), max_rows=4, max_batched_tokens=8)
    world.send(0, prompt_tokens=50, max_tokens=2)
    world.step()
    world.send(1, prompt_tokens=4, max_tokens=2)
    assert [(row.request, len(row.tokens)) for row in world.step().rows] == [("1-0", 4), ("0-0", 4)]


def test_what_is_cached_is_charged_like_anything_else():
    charges = []
    for group in ("warm", "cold"):
        run = Run(limits())
        run.admit(request("first", range(20), group="warm"))
        run.drain()
        before = run.scheduler.service[1]
        run.admit(request("second", range(20), app=1, group=group))
        before = run.scheduler.service[1]
        run.drain()
        charges.append(run.scheduler.service[1] - before)
        assert (run.ends["second"].cached_tokens > 0) == (group == "warm")
    assert charges[0] == charges[1], "or the order would tell what others have in the cache"


def starts(run: Run) -> list[str]:
    """Requests in the order of their first row, one at a time."""
    order: list[str] = []
    while run.scheduler.has_work:
        step = run.step()
        order += [row.request for row in step.rows if row.request not in order]
    return order


def test_within_a_tenant_whose_first_token_is_due_goes_first():
    own = replace(limits(max_rows=1, weights=(1.0,)), ttft_targets_s=(0.5, 5.0, None, None, None, None))
    run = Run(own)
    for name, app in (("lenient", 2), ("slow", 1), ("fast", 0), ("also fast", 0)):
        run.admit(request(name, [1, 2], app=app, max_tokens=2))
    run.now_s = 8.0  # by now the one without a target is due in two seconds
    run.admit(request("late", [1, 2], app=1, max_tokens=2))
    assert starts(run) == ["fast", "also fast", "slow", "lenient", "late"]


def test_priority_orders_a_tenants_own_requests_only():
    run = Run(limits(max_rows=1, weights=(1.0, 1.0)))
    for priority in (5, 0, -3):
        for tenant in range(2):
            own = request(f"{tenant} at {priority}", [1, 2], app=tenant, chain=0, max_tokens=2)
            run.admit(replace(own, priority=priority if tenant == 0 else 0))
    order = starts(run)
    assert [name for name in order if name.startswith("0")] == ["0 at -3", "0 at 0", "0 at 5"]
    assert [name for name in order if name.startswith("1")] == ["1 at 5", "1 at 0", "1 at -3"]
    assert {name[0] for name in order[:2]} == {"0", "1"}, "nobody's priority is another tenant's business"


def test_probabilities_are_paid_for():
    """Two tenants alike, one of which asks for probabilities: it gets fewer tokens."""
    run = Run(limits(pages=(400, 400), max_rows=2, weights=(1.0, 1.0)), {"max_waiting": 1000})
    for number in range(200):
        for tenant in range(2):
            sampling = Sampling(logprobs=3) if tenant else None
            run.admit(request(f"{tenant}-{number}", [1], app=tenant, group=str(tenant), sampling=sampling))
    produced = [0, 0]
    for _ in range(300):
        before = len(run.log)
        run.step()
        for event in run.log[before:]:
            if isinstance(event, TokensEvent):
                produced[int(event.request[0])] += 1
    cost = (PROMPT_COST + 8 * OUTPUT_COST, PROMPT_COST + 8 * (OUTPUT_COST + LOGPROBS_COST))
    assert produced[0] / produced[1] == pytest.approx(cost[1] / cost[0], rel=0.05)
