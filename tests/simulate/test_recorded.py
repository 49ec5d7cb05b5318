"""`arrival = trace(...)`: who comes when, with how much, and what the spec's own averages make of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from blockc.diag import DiagnosticError, Diagnostics
from blockc.simulate import Workload, spec_draw
from blockc.spec.deployment import Deployment, LocalSource, Traffic
from tests.support.deployments import deployment

ROWS = [(0.0, 10, 2), (1.0, 20, 4), (1.5, 30, 6), (4.0, 40, 8)]


def trace(tmp_path: Path, *, apps: tuple[str, ...] = ()) -> LocalSource:
    lines = [
        f'{{"timestamp": {at_s}, "prompt_tokens": {prompt}, "output_tokens": {output}'
        + (f', "app": "{apps[index % len(apps)]}"' if apps else "")
        + "}"
        for index, (at_s, prompt, output) in enumerate(ROWS)
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return LocalSource(path=path, written="requests.jsonl")


def with_traffic(tmp_path: Path, **traffic: Traffic) -> Deployment:
    plain = deployment(tmp_path, apps={"acme": dict.fromkeys(traffic, "base")})
    tenants = {
        name: replace(tenant, apps=tuple(replace(app, traffic=traffic[app.name]) for app in tenant.apps))
        for name, tenant in plain.tenants.items()
    }
    return replace(plain, tenants=tenants)


def drawn(own: Deployment, *, seconds: float = 100.0, seed: int = 0, diags: Diagnostics | None = None) -> Workload:
    draw = spec_draw(
        own, [app.address for app in own.apps], seconds=seconds, prompt_tokens=50, output_tokens=20, cv=1.0, turns=1.0,
        think_s=1.0, diags=Diagnostics() if diags is None else diags,
    )  # fmt: skip
    return draw(seed)


def rows(workload: Workload, app: int = 0) -> list[tuple[float, int, int]]:
    return [(item.at_s, item.prompt_tokens, item.output_tokens) for item in workload.arrivals if item.app == app]


def test_a_trace_that_names_apps_is_replayed_as_it_was(tmp_path: Path) -> None:
    source = trace(tmp_path, apps=("acme/a", "acme/b"))
    own = with_traffic(tmp_path, a=Traffic(arrival_trace=source), b=Traffic(arrival_trace=source))
    for seed in (0, 7):
        found = drawn(own, seed=seed)
        assert rows(found, 0) == [ROWS[0], ROWS[2]]
        assert rows(found, 1) == [ROWS[1], ROWS[3]]
    assert rows(drawn(own, seconds=1.2), 0) == [ROWS[0]]


def test_any_other_goes_round_from_a_drawn_place(tmp_path: Path) -> None:
    source = trace(tmp_path)
    own = with_traffic(tmp_path, a=Traffic(arrival_trace=source), b=Traffic(arrival_trace=source))
    found = drawn(own, seconds=400.0)
    assert found == drawn(own, seconds=400.0)
    assert found != drawn(own, seconds=400.0, seed=1)
    for app in (0, 1):
        prompts = [prompt for _, prompt, _ in rows(found, app)]
        first = [10, 20, 30, 40].index(prompts[0])
        assert prompts[:8] == ([10, 20, 30, 40] * 3)[first : first + 8]
        assert len(prompts) == pytest.approx(400 * 3 / 4, rel=0.02)  # three gaps in four seconds
    times = [item.at_s for item in found.arrivals]
    assert times == sorted(times)


def test_averages_of_the_spec_scale_the_trace(tmp_path: Path) -> None:
    traffic = Traffic(rate_rps=Fraction(5), prompt_tokens=100, output_tokens=50, arrival_trace=trace(tmp_path))
    found = rows(drawn(with_traffic(tmp_path, a=traffic), seconds=200.0))
    assert len(found) == pytest.approx(1000, rel=0.01)
    assert {prompt for _, prompt, _ in found} == {40, 80, 120, 160}
    assert {output for _, _, output in found} == {20, 40, 60, 80}


def test_drawn_and_recorded_apps_come_together(tmp_path: Path) -> None:
    own = with_traffic(tmp_path, a=Traffic(arrival_trace=trace(tmp_path)), b=Traffic(rate_rps=Fraction(3)))
    found = drawn(own)
    assert {item.app for item in found.arrivals} == {0, 1}
    alone = drawn(with_traffic(tmp_path, a=Traffic(), b=Traffic(rate_rps=Fraction(3))))
    assert rows(found, 1) == rows(alone, 1)
    times = [item.at_s for item in found.arrivals]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("apps", "code", "words"), [(("acme/other",), "BC503", "has 0 requests for `acme/a`"), (None, "BC003", "read")]
)
def test_what_is_wrong_with_a_trace(tmp_path: Path, apps, code: str, words: str) -> None:
    source = trace(tmp_path, apps=apps or ())
    if apps is None:
        source.path.unlink()
    diags = Diagnostics()
    with pytest.raises(DiagnosticError):
        drawn(with_traffic(tmp_path, a=Traffic(arrival_trace=source)), diags=diags)
    assert [item.code.id for item in diags] == [code]
    assert words in next(iter(diags)).message
