"""Times of chains: their parts add up to the prices of steps, and the page shows them beside targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from blockc.cli import main
from blockc.cost import TICKS_PER_S, StepPricer, catalogue_rates, plan_work
from blockc.cost.fit import Fit
from blockc.cost.profile import Profile, profile_of, write_profile
from blockc.plan import ExecutionPlan, write_plan
from blockc.render.hops import ways_of
from blockc.render.page import render_page
from blockc.spec.device_kinds import DEVICE_KINDS
from tests.plan.fleet import fleet_plan
from tests.render.test_page import APPS, read


@pytest.fixture(scope="module")
def plan() -> ExecutionPlan:
    return fleet_plan(apps=APPS, memory_bytes=1 << 20, devices=2)


def profile(plan: ExecutionPlan, factor: float) -> Profile:
    rates = catalogue_rates(DEVICE_KINDS["cpu"])
    assert rates is not None
    slow = replace(rates, bytes_per_s=rates.bytes_per_s / factor, step_s=rates.step_s * factor)
    fit = Fit(rates=slow, samples=9, error_p50=0.04, error_p95=0.1, kinds={})
    return profile_of(fit, device="cpu", machine={}, structures=tuple(plan.structures))


@pytest.mark.parametrize("budget", [7, 64, 256])
def test_parts_add_up_to_the_price_of_the_steps(plan: ExecutionPlan, budget: int) -> None:
    batching = plan.batching.model_copy(update={"max_batched_tokens": budget})
    plan = plan.model_copy(update={"batching": batching})
    rates = catalogue_rates(DEVICE_KINDS["cpu"])
    assert rates is not None
    pricer = StepPricer(plan_work(plan), rates)
    ways = ways_of(plan)
    assert ways.by_chain.keys() == {route.chain for route in plan.routes}
    prompt = ways.prompt_tokens
    for chain, way in ways.by_chain.items():
        token = pricer.launches({chain: 1}, {chain: 1}) + pricer.attention(chain, prompt, 1) + pricer.constant(1)
        assert way.token_s == pytest.approx(token / TICKS_PER_S)
        steps = 0
        for start in range(0, prompt, budget):
            count = min(budget, prompt - start)
            samples = {chain: 1} if start + count == prompt else {}
            steps += pricer.launches({chain: count}, samples) + pricer.attention(chain, start, count)
            steps += pricer.constant(1)
        assert way.prompt_s == pytest.approx(steps / TICKS_PER_S)
        assert [hop.segment for hop in way.hops] == list(plan.chains[chain].segments)
        work = plan_work(plan)
        read = sum(work.segments[s].read_bytes + work.segments[s].row_read_bytes for s in plan.chains[chain].segments)
        assert sum(hop.cost.read_bytes for hop in way.hops) == read


def test_it_is_said_where_times_come_from(plan: ExecutionPlan) -> None:
    by_catalogue, measured = ways_of(plan), ways_of(plan, profile(plan, 4))
    assert "roofline" in by_catalogue.source
    assert "profile of a cpu" in measured.source
    assert "4%" in measured.source
    for chain, way in by_catalogue.by_chain.items():
        assert measured.by_chain[chain].token_s > way.token_s
    assert any("profile of a cpu" in words for words in read(render_page(plan, profile=profile(plan, 4)).html).words)
    other = profile(plan, 4).model_copy(update={"device": "h100_80g"})
    assert ways_of(plan, other) == by_catalogue, "the profile of a device that the plan has not is none of its"


def test_unknown_devices_have_no_times(plan: ExecutionPlan) -> None:
    devices = tuple(device.model_copy(update={"kind": "cuda"}) for device in plan.devices)
    unknown = plan.model_copy(update={"devices": devices})
    ways = ways_of(unknown)
    assert ways.by_chain == {}
    assert ways.unknown == ("cuda",)
    page = read(render_page(unknown).html)
    assert any("Nothing is known of how fast cuda is" in words for words in page.words)
    assert not [a for _, a in page.tags if str(a.get("data-key")).startswith("h")]


def test_targets_stand_beside_times(plan: ExecutionPlan) -> None:
    way = ways_of(plan).by_chain[plan.apps[0].chain]
    targets = (way.prompt_s / 2, way.prompt_s * 2, None)
    apps = tuple(app.model_copy(update={"ttft_s": own}) for app, own in zip(plan.apps, targets, strict=False))
    plan = plan.model_copy(update={"apps": apps})
    page = read(render_page(plan).html)
    assert sum(words.endswith(", over") for words in page.words) == 1
    assert sum(words.startswith("over the target of") for words in page.words) == 1
    assert sum(words.startswith("within the target of") for words in page.words) == 1
    keys = {a["data-key"] for _, a in page.tags if str(a.get("data-key")).startswith("h")}
    assert keys == {f"h{index}" for index in range(len(apps))}


def test_viz_takes_a_profile(plan: ExecutionPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(plan, tmp_path / "plan.json")
    measured = profile(plan, 4)
    write_profile(measured, tmp_path / "profile.json")
    write_profile(measured.model_copy(update={"device": "h100_80g"}), tmp_path / "other.json")
    page = tmp_path / "plan.html"

    def viz(name: str, form: str = "html") -> int:
        options = ["--format", form, "--profile", str(tmp_path / name), "-o", str(page)]
        return main(["viz", str(tmp_path / "plan.json"), *options])

    assert viz("profile.json") == 0
    assert "the profile of a cpu" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    assert viz("other.json") == 1
    assert "BC505" in capsys.readouterr().err
    assert viz("profile.json", "text") == 64
    assert viz("missing.json") == 1
