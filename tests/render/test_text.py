"""A plan as text: goldens, any width, any terminal, and names that try to talk to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blockc.plan import ExecutionPlan, TenantEntry
from blockc.render import format_bytes, render_plan
from tests.plan.fleet import digest, fleet_plan, wider

Golden = Callable[[str, str], None]


@pytest.fixture(scope="module")
def plan() -> ExecutionPlan:
    apps = [("acme", "chat", 0), ("acme", "draft", 2), ("acme", "legal", 1), ("zoo", "law", 1), ("zoo", "lore", 3)]
    return fleet_plan(apps=apps, memory_bytes=1 << 20, devices=2)


def test_wide(plan: ExecutionPlan, golden: Golden) -> None:
    golden("render/wide.txt", render_plan(plan, width=120))


def test_narrow(plan: ExecutionPlan, golden: Golden) -> None:
    golden("render/narrow.txt", render_plan(plan, width=48, ascii_only=True))


@pytest.mark.parametrize("width", [1, 40, 41, 57, 80, 100, 133, 1000])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_width_and_alphabet(plan: ExecutionPlan, width: int, ascii_only: bool) -> None:
    text = render_plan(plan, width=width, ascii_only=ascii_only)
    assert max(map(len, text.splitlines())) <= max(width, 40)
    assert text.endswith("\n")
    assert not ascii_only or text.isascii()
    together = " ".join(text.split())
    for app in plan.apps:
        assert app.address in together


def test_who_shares_kv(plan: ExecutionPlan) -> None:
    """Base and checkpoint agree below the layer that was tuned; other tenants never share."""
    lines = render_plan(plan, width=200).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("KV CACHE"))
    kv = lines[start : lines.index("", start)]
    assert [line.strip() for line in kv if "shared by" in line] == ["shared by acme/chat, acme/legal"]
    assert kv[1].startswith("  group 0: layers 0-2")
    assert kv[2].strip().startswith("shared by")


def test_names_are_shown_and_not_obeyed(plan: ExecutionPlan) -> None:
    evil = "\x1b[2J\x07\r\n\u202egnihton\x9b0m"
    apps = tuple(app.model_copy(update={"tenant": evil, "app": f"{evil}{i}"}) for i, app in enumerate(plan.apps))
    for ascii_only in (False, True):
        text = render_plan(plan.model_copy(update={"apps": apps}), width=300, ascii_only=ascii_only)
        assert all(char == "\n" or char.isprintable() for char in text)
        assert "\\x1b[2J" in text
        assert len(text.splitlines()) == len(render_plan(plan, width=300).splitlines())


def test_a_thousand_apps(plan: ExecutionPlan) -> None:
    lines = render_plan(wider(plan, 1000), width=120).splitlines()
    assert len(lines) < 1050
    assert any("and 139 more" in line for line in lines), "a tenant's 143 apps on the base, four of them by name"


def test_plans_without_numbers_are_still_shown(plan: ExecutionPlan) -> None:
    baselines = plan.baselines.model_copy(update={"pm_bytes": 0, "ps_bytes": 0, "ours_bytes": 0})
    empty = plan.model_copy(update={"apps": (), "baselines": baselines, "models": {}})
    assert "0 apps" in render_plan(empty)
    unknown = plan.model_copy(update={"models": {}})
    assert "acme/chat" in render_plan(unknown)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (16 << 30, "16.0 GiB"),
        (100 << 20, "100 MiB"),
        (3 << 50, "3072 TiB"),
    ],
)
def test_format_bytes(nbytes: int, text: str) -> None:
    assert format_bytes(nbytes) == text


def test_isolation_shows(plan: ExecutionPlan) -> None:
    """Two apps on one chain in different groups share no pages."""
    apps = (plan.apps[0], plan.apps[0].model_copy(update={"app": "other", "isolation_group": digest("other")}))
    assert "shared by" not in render_plan(plan.model_copy(update={"apps": apps}))


def test_tenants(plan: ExecutionPlan) -> None:
    """What each has to itself, what it shares, and its part of the whole; plans that do not say it have no section."""
    assert "TENANTS" not in render_plan(plan)
    entries = tuple(
        TenantEntry(tenant=name, pm_bytes=4096, private_bytes=private, shared_bytes=2048, fair_bytes=private + 1024)
        for name, private in (("acme", 0), ("\x1bzoo", 1 << 20))
    )
    lines = render_plan(plan.model_copy(update={"tenants": entries})).splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("TENANTS"))
    assert [" ".join(line.split()) for line in lines[start + 1 :]] == [
        "acme PM 4.0 KiB private 0 B shared 2.0 KiB fair share 1.0 KiB",
        "\\x1bzoo PM 4.0 KiB private 1.0 MiB shared 2.0 KiB fair share 1.0 MiB",
    ]
