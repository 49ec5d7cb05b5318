"""The page in Chromium: its scripts run under its policy, and names of tenants run nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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
    """The page and figures of a tenant with a hostile name, as `blockc serve` sends them."""

    page: Page
    figures: str
    asked: list[float]

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/ui":
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", f"{self.page.policy}; frame-ancestors 'none'")
            content = self.page.html
        else:
            self.asked.append(1)
            content = self.figures.replace("TOKENS", str(100 * len(self.asked)))
        self.end_headers()
        self.wfile.write(content.encode())


@pytest.mark.parametrize("evil", ["acme", *EVIL])
def test_live_figures(plan: ExecutionPlan, tmp_path: Path, evil: str) -> None:
    hostile = renamed(plan, evil, "app")
    labels = {"tenant": evil, "app": "app0"}
    written = ",".join(
        f'{k}="{v.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"' for k, v in labels.items()
    )
    Server.page, Server.asked = render_page(hostile, live=True), []
    Server.figures = (
        "# HELP blockc:num_requests_running Requests\n"
        f"blockc:num_requests_running{{{written}}} 7.0\n"
        f"blockc:generation_tokens_total{{{written}}} TOKENS\n"
        f'blockc:time_to_first_token_seconds_bucket{{{written},le="0.5"}} TOKENS\n'
        f'blockc:time_to_first_token_seconds_bucket{{{written},le="+Inf"}} TOKENS\n'
        'blockc:kv_pages{group="0"} 200.0\nblockc:kv_pages_free{group="0"} 150.0\n'
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        page, console = dumped(f"http://127.0.0.1:{running.server_address[1]}/ui", tmp_path, budget_ms=7000)
        running.shutdown()
    assert console == ""
    assert len(Server.asked) >= 2
    words = [word for word in page.words if word.strip()]
    row = words[words.index("Apps now; times are of the last minute or so") :]
    first = row[row.index("ended") + 1 :][:8]
    assert first[1:3] == ["7", "0"], "requests that run and wait, of the first app"
    assert float(first[3]) > 0
    assert first[4] == "250 ms", "half of the one bucket that anything fell into"
    assert "25 %" in words, "pages in use"
    assert "The server answers." in words


def test_a_policy_that_holds(plan: ExecutionPlan, tmp_path: Path) -> None:
    """A negative control: one byte more in the script, and it does not run."""
    html = render_page(plan).html.replace('"use strict";', '"use strict"; ')
    page, console = opened(html, tmp_path)
    assert "Content Security Policy" in console
    assert not [a for tag, a in page.tags if tag == "body" and a.get("class")]
