"""The page in Chromium: its scripts run under its policy, and names of tenants run nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from blockc.plan import ExecutionPlan
from blockc.render.page import Page, render_page
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
    return dumped(f"{path.as_uri()}{fragment}", folder)


def dumped(url: str, folder: Path, *, budget_ms: int = 2000) -> tuple[Read, str]:
    command = [str(CHROMIUM), "--headless=new", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # Chromium's sandbox does not run for root
    command += [f"--user-data-dir={folder / 'profile'}", f"--virtual-time-budget={budget_ms}", url]
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


class Server(BaseHTTPRequestHandler):
    """The page, and a short stream of figures of a tenant with a hostile name, as `blockc serve` sends them."""

    page: Page
    tenant: str
    asked: list[str]

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        if self.path == "/ui":
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", f"{self.page.policy}; frame-ancestors 'none'")
            self.end_headers()
            self.wfile.write(self.page.html.encode())
            return
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.end_headers()
        for turn in range(4):
            self.wfile.write(f"data: {json.dumps(self._event(turn))}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.05)
        self.wfile.write(b"event: end\ndata: {}\n\n")

    def _event(self, turn: int) -> dict[str, object]:
        """Of the first app: tokens in turn 0, 1 and 3. Counts are those of a whole server."""
        row = [self.tenant, "app0", 7, 2, 100 * turn, 3, 30, 120, 0.25, 1.5]
        return {
            "at": 1000.0 + turn, "state": "ready", "steps": 10 * turn, "rows": 45 * turn, "chains": 20 * turn,
            "launches": 20 * turn, "pages": 200, "held": 50, "cached": 20, "evicted": 4 * turn, "preemptions": turn,
            "side_loads": 0, "apps": [] if turn == 2 else [row],
        }  # fmt: skip


@pytest.mark.parametrize("evil", ["acme", *EVIL])
def test_live_figures(plan: ExecutionPlan, tmp_path: Path, evil: str) -> None:
    Server.page, Server.tenant, Server.asked = render_page(renamed(plan, evil, "app"), live=True), evil, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        page, console = dumped(f"http://127.0.0.1:{running.server_address[1]}/ui", tmp_path, budget_ms=2000)
        running.shutdown()
    assert console == ""
    assert Server.asked[:2] == ["/ui", "/ui/events"]
    words = [word for word in page.words if word.strip()]
    row = words[words.index("Apps now; times to first token (TTFT) are of the last minute") :]
    first = row[row.index("ended") + 1 :][:8]
    assert first[1:] == ["7", "2", "100", "250 ms", "1.50 s", "25 %", "3"], "of the first app"
    tiles = dict(reversed(list(pairwise(words))))  # the first time that a name stands there
    assert (tiles["tokens a second"], tiles["requests running"], tiles["requests waiting"]) == ("100", "7", "2")
    assert (tiles["rows a step"], tiles["models a step"]) == ("4.5", "2.0")
    assert (tiles["KV pages in use"], tiles["KV pages cached"]) == ("25 %", "10 %")
    assert (tiles["evictions a minute"], tiles["preemptions a minute"]) == ("12", "3")
    assert "The server is ending. Trying again." in words
    sparks = [index for index, (_, a) in enumerate(page.tags) if a.get("data-spark")]
    assert len(sparks) == 10
    assert all(str(page.tags[index + 1][1].get("d")).startswith("M") for index in sparks), "a line for each figure"


def test_a_policy_that_holds(plan: ExecutionPlan, tmp_path: Path) -> None:
    """A negative control: one byte more in the script, and it does not run."""
    html = render_page(plan).html.replace('"use strict";', '"use strict"; ')
    page, console = opened(html, tmp_path)
    assert "Content Security Policy" in console
    assert not [a for tag, a in page.tags if tag == "body" and a.get("class")]
