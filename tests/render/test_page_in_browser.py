"""The page in Chromium: its scripts run under its policy, and names of tenants run nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from blockc.plan import ExecutionPlan
from blockc.render.page import render_page
from tests.plan.fleet import fleet_plan
from tests.render.test_page import APPS, EVIL, Read, read, renamed

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def plan() -> ExecutionPlan:
    return fleet_plan(apps=APPS, memory_bytes=1 << 20, devices=2)


def opened(html: str, folder: Path, fragment: str = "") -> tuple[Read, str]:
    """The document after its scripts ran, and what the console said."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    command = [str(CHROMIUM), "--headless=new", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium's sandbox does not run for root
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000", f"{path.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return read(done.stdout), console


def test_scripts_run_and_complain_of_nothing(plan: ExecutionPlan, tmp_path: Path) -> None:
    page, console = opened(render_page(plan).html, tmp_path, "#sharing")
    assert console == ""
    hidden = {a["id"]: "hidden" in a for tag, a in page.tags if tag == "section"}
    assert hidden == {"devices": True, "chains": True, "sharing": False, "solver": True}
    current = [attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes.get("aria-current")]
    assert current == ["#sharing"]
    parts = [attributes for _, attributes in page.tags if attributes.get("data-key")]
    assert all(part["aria-label"] and part["role"] == "img" for part in parts)
    pictures = sum(tag == "svg" and attributes.get("class") == "pick" for tag, attributes in page.tags)
    assert sum(part["tabindex"] == "0" for part in parts) == pictures, "one stop for Tab in each picture"


@pytest.mark.parametrize("evil", EVIL)
def test_names_run_nothing(plan: ExecutionPlan, tmp_path: Path, evil: str) -> None:
    page, console = opened(render_page(renamed(plan, evil, evil), against=plan, live=True).html, tmp_path)
    harmless, _ = opened(render_page(renamed(plan, "tenant", "app"), against=plan, live=True).html, tmp_path)
    assert console == ""
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]


def test_a_policy_that_holds(plan: ExecutionPlan, tmp_path: Path) -> None:
    """A negative control: one byte more in the script, and it does not run."""
    html = render_page(plan).html.replace('"use strict";', '"use strict"; ')
    page, console = opened(html, tmp_path)
    assert "Content Security Policy" in console
    assert not [a for tag, a in page.tags if tag == "body" and a.get("class")]
