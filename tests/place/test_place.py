"""Placement against trying everything, and the invariants of every placement."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction

import pytest

from blockc.diag import Diagnostics
from blockc.ir.layout import KvPages, gather_bytes
from blockc.place import PlaceExpect, Placement, PlaceProblem, cpsat, place
from blockc.place.bound import devices_bound
from blockc.place.cpsat import holds, solve
from blockc.place.greedy import greedy
from blockc.place.sizes import sizes_of
from tests.place.problems import (
    assert_grows_by_chains,
    chain,
    device,
    every_assignment,
    problem,
    random_problem,
    segment,
    span,
)

SEEDS = range(120)


def placed(given: PlaceProblem) -> tuple[Placement | None, Diagnostics]:
    diags = Diagnostics()
    placement = place(given, diags=diags)
    assert (placement is None) == any(item.code.id in ("BC401", "BC402") for item in diags)
    return placement, diags


def peak(given: PlaceProblem, assignment: tuple[int, ...]) -> Fraction:
    """What the second objective minimises, exactly."""
    sizes = sizes_of(given)
    members = {d: [c for c, p in enumerate(assignment) if p == d] for d in set(assignment)}
    if all(item.rate_rps is not None for item in given.chains):
        loads = [(item.rate_rps or 0) * max(1, sizes.weights_bytes([c])) for c, item in enumerate(given.chains)]
        return max(Fraction(sum(loads[c] for c in own)) for own in members.values()) / sum(loads)
    return max(Fraction(sizes.least(own).used_bytes, given.devices[d].offered_bytes) for d, own in members.items())


@pytest.mark.parametrize("seed", SEEDS)
def test_no_assignment_is_better(seed: int) -> None:
    given = random_problem(seed)
    sizes = sizes_of(given)
    every = every_assignment(sizes)
    placement, _ = placed(given)
    if not every:
        assert placement is None
        return
    assert placement is not None
    assert placement.solver.status == "optimal"
    assert placement.solver.gap == 0
    fewest = min(len(set(assignment)) for assignment in every)
    assert placement.solver.value == fewest == len(placement.instances)
    assignment = tuple(placement.instances[route.alternatives[0][0]].devices[0] for route in placement.routes)
    best = min(peak(given, item) for item in every if len(set(item)) == fewest)
    # Shares are whole ten-thousandths, one for each chain.
    assert peak(given, assignment) <= best + Fraction(len(given.chains) + 1, 10_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_placement_holds(seed: int) -> None:
    given = random_problem(seed, most_chains=10)
    placement, _ = placed(given)
    if placement is None:
        return
    sizes = sizes_of(given)
    assert sorted(c for instance in placement.instances for c in instance.chains) == list(range(len(given.chains)))
    assert placement.solver.bound <= placement.solver.value
    for entry in placement.memory:
        assert entry.used_bytes <= entry.capacity_bytes
    for instance in placement.instances:
        (index,) = instance.devices
        entry = placement.memory[index]
        pools = [
            KvPages(pages=pages, page_bytes=given.groups[g].page_bytes, layers=given.groups[g].layers)
            for g, pages in instance.kv_pages.items()
        ]
        assert entry.kv_bytes == sum(pool.pages * pool.page_bytes for pool in pools)
        assert entry.workspace_bytes >= gather_bytes(pools)
        assert entry.weights_bytes == sizes.weights_bytes(instance.chains)
        for c in instance.chains:
            for g in given.chains[c].groups:
                assert instance.kv_pages[g] * 16 >= given.chains[c].max_model_len
        longest = sizes.least_pages(instance.chains)
        assert all(pages <= longest[g] * given.max_rows for g, pages in instance.kv_pages.items())
        assert set(instance.segments) == {s for c in instance.chains for s in given.chains[c].segments}


@pytest.mark.parametrize("seed", range(40))
def test_sums_agree(seed: int) -> None:
    """The incremental sums of greedy, the sums of the model and the layout are one."""
    assert_grows_by_chains(sizes_of(random_problem(seed)))


@pytest.mark.parametrize("seed", range(60))
def test_bounds_and_greedy(seed: int) -> None:
    sizes = sizes_of(random_problem(seed))
    every = every_assignment(sizes)
    found = greedy(sizes)
    if every:
        assert devices_bound(sizes) <= min(len(set(item)) for item in every)
    if found is not None:
        assert holds(sizes, found)
        assert found in every


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_same_problem_same_placement(seed: int) -> None:
    given = random_problem(seed, most_devices=3, most_chains=12)
    assert placed(given)[0] == placed(given)[0]


def test_without_a_hint_the_solver_agrees() -> None:
    for seed in range(40):
        sizes = sizes_of(random_problem(seed))
        if len(sizes.problem.devices) < 2 or devices_bound(sizes) > len(sizes.problem.devices):
            continue
        hinted = solve(sizes, hint=greedy(sizes), devices_bound=devices_bound(sizes))
        alone = solve(sizes, hint=None, devices_bound=1)
        assert (hinted.assignment is None) == (alone.assignment is None)
        if hinted.assignment is not None and alone.assignment is not None:
            assert len(set(hinted.assignment)) == len(set(alone.assignment))


def test_a_wrong_claim_of_the_solver_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """ortools 9.15 can call feasible models infeasible in presolve."""
    given = problem(
        [device(0, 100 * 512), device(1, 100 * 512)],
        [segment("a", 60 * 512), segment("b", 60 * 512)],
        [chain("a", (0,)), chain("b", (1,))],
    )
    real = cpsat._Model.run

    def lying(self: cpsat._Model, hint: object, *, presolve: bool = True) -> cpsat._Outcome:
        if presolve:
            return cpsat._Outcome(assignment=None, bound=0, optimal=False, infeasible=True)
        return real(self, None, presolve=False)

    monkeypatch.setattr(cpsat._Model, "run", lying)
    placement, diags = placed(given)
    assert placement is not None
    assert placement.solver.value == 2
    assert not len(diags)
    without_greedy = solve(sizes_of(given), hint=None, devices_bound=1)
    assert without_greedy.assignment is not None


def test_no_answer_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem([device(0, 1 << 20), device(1, 1 << 20)], [segment("a", 512)], [chain("a", (0,))])
    nothing = cpsat._Outcome(assignment=None, bound=0, optimal=False, infeasible=False)
    monkeypatch.setattr(cpsat._Model, "run", lambda self, hint, presolve=True: nothing)
    monkeypatch.setattr(sys.modules["blockc.place.place"], "greedy", lambda sizes: None)
    monkeypatch.setattr(sys.modules["blockc.place.place"], "fill_cells", lambda views: None)
    placement, diags = placed(given)
    assert placement is None
    assert [item.code.id for item in diags] == ["BC402"]


def test_an_unproven_plan_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four models of which any two are too much for a device: the sum of bytes alone does not show it."""
    given = problem(
        [device(d, 100 * 512) for d in range(4)],
        [segment(str(i), 51 * 512) for i in range(4)],
        [chain(str(i), (i,)) for i in range(4)],
    )
    assert placed(given)[0] is not None
    assert placed(given)[0].solver.gap == 0  # type: ignore[union-attr]
    nothing = cpsat._Outcome(assignment=None, bound=0, optimal=False, infeasible=False)
    monkeypatch.setattr(cpsat._Model, "run", lambda self, hint, presolve=True: nothing)
    placement, diags = placed(given)
    assert placement is not None
    assert placement.solver.status == "feasible"
    assert 0 < placement.solver.gap < 1
    assert [item.code.id for item in diags] == ["BC403"]


def test_a_shared_segment_is_on_every_device_that_runs_it() -> None:
    given = problem(
        [device(0, 100 * 512), device(1, 100 * 512)],
        [segment("base", 40 * 512)],
        [chain("a", (0,), side_bytes=45 * 512), chain("b", (0,), side_bytes=45 * 512)],
    )
    placement, _ = placed(given)
    assert placement is not None
    assert [entry.weights_bytes for entry in placement.memory] == [40 * 512, 40 * 512]


def test_rates_are_balanced() -> None:
    given = problem(
        [device(0, 100 * 512), device(1, 100 * 512)],
        [segment("base", 20 * 512)],
        [chain(str(i), (0,), side_bytes=30 * 512, rate=rate) for i, rate in enumerate((9, 1, 5, 5))],
    )
    placement, _ = placed(given)
    assert placement is not None
    groups = sorted(sorted(instance.chains) for instance in placement.instances)
    assert groups == [[0, 1], [2, 3]]


def test_pages_fill_what_is_left_evenly() -> None:
    """Two groups of one chain get the same number of pages, since a sequence needs both."""
    wide = replace(chain("a", (0,), length=160), groups=(0, 1))
    given = problem([device(0, 512 * 200)], [segment("base", 512 * 100)], [wide], groups=2, layers=1)
    unequal = replace(given, groups=(given.groups[0], replace(given.groups[1], page_bytes=1536, layers=3)))
    placement, _ = placed(unequal)
    assert placement is not None
    pages = placement.instances[0].kv_pages
    assert pages[0] == pages[1]
    assert 10 <= pages[0] < 40
    more = {group: count + 1 for group, count in pages.items()}
    assert sizes_of(unequal).layout([0], more, reserve_bytes=0).used_bytes > unequal.devices[0].offered_bytes


@pytest.mark.parametrize("seed", range(60))
def test_no_page_is_left_out(seed: int) -> None:
    """A device that does not hold all pages that could be used has no room for one more of each."""
    given = random_problem(seed)
    placement, _ = placed(given)
    for instance in placement.instances if placement is not None else ():
        sizes = sizes_of(given)
        least = sizes.least_pages(instance.chains)
        if any(instance.kv_pages[group] < least[group] * given.max_rows for group in least):
            more = {group: count + 1 for group, count in instance.kv_pages.items()}
            used = sizes.layout(instance.chains, more, reserve_bytes=0).used_bytes
            assert used > given.devices[instance.devices[0]].offered_bytes


def test_expectations() -> None:
    given = problem([device(0, 1 << 20)], [segment("a", 512)], [chain("a", (0,))])
    assert not len(placed(replace(given, expect=(PlaceExpect(memory_below_bytes=1 << 20, span=span(3)),)))[1])
    _, diags = placed(replace(given, expect=(PlaceExpect(memory_below_bytes=1024, span=span(3)),)))
    (item,) = diags
    assert item.code.id == "BC502"
    assert item.primary is not None
    assert item.primary.span == span(3)
    assert "expected less than 1.0 KiB" in item.message


def test_a_thousand_adapters() -> None:
    """More than the exact model takes: greedy, with an honest bound."""
    given = problem(
        [device(d, 1 << 24) for d in range(20)],
        [segment("base", 1 << 22)],
        [chain(f"a{i}", (0,), side_bytes=1 << 17) for i in range(1000)],
    )
    placement, diags = placed(given)
    assert placement is not None
    assert placement.solver.solver == "greedy"
    assert 8 <= placement.solver.bound <= placement.solver.value <= 12
    assert [item.code.id for item in diags] == ["BC403"]
