"""The page: what is in it, that names stay text, that nothing is fetched, that it is small and the same every time."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from blockc.plan import AppEntry, ExecutionPlan, write_plan
from blockc.render.change import change_of, change_text
from blockc.render.facts import facts_of
from blockc.render.mermaid import render_mermaid
from blockc.render.page import render_page, render_svg
from tests.plan.fleet import fleet_plan

EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onfocus='alert(1)",
    "<!--<script>",
    "]]>&lt;b&gt;&#60;i&#62;",
    "\x1b[2J\u202egnihton\u2028\u2066",
    "${alert(1)}`javascript:alert(1)",
)
APPS = [("acme", "chat", 0), ("acme", "draft", 2), ("acme", "legal", 1), ("zoo", "law", 1), ("zoo", "lore", 3)]
VOID = {"meta", "link", "input", "br", "col"}


@dataclass
class Read(HTMLParser):
    """A page, read by the standard library: elements in order with their attributes, text, scripts by id or number."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    blocks: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("script", "style"):
            self.blocks[dict(attrs).get("id") or f"{tag}{len(self.blocks)}"] = ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            last = next(reversed(self.blocks))
            self.blocks[last] += data
        else:
            self.words.append(data)

    def by_id(self, name: str) -> dict[str, str | None]:
        return next(attributes for _, attributes in self.tags if attributes.get("id") == name)


def read(html: str) -> Read:
    page = Read()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def plan() -> ExecutionPlan:
    return fleet_plan(apps=APPS, memory_bytes=1 << 20, devices=2)


def renamed(plan: ExecutionPlan, tenant: str, app: str) -> ExecutionPlan:
    """Tenants and apps by other names, and the models, nodes and devices, too."""
    apps: tuple[AppEntry, ...] = tuple(
        entry.model_copy(update={"tenant": tenant, "app": f"{app}{number}", "model": f"{app}{entry.model}"})
        for number, entry in enumerate(plan.apps)
    )
    models = {
        f"{app}{name}": model.model_copy(update={"parent": None if model.parent is None else f"{app}{model.parent}"})
        for name, model in plan.models.items()
    }
    devices = tuple(
        device.model_copy(update={"address": f"{app}/{index}", "node": app, "kind": tenant})
        for index, device in enumerate(plan.devices)
    )
    tenants = tuple(entry.model_copy(update={"tenant": tenant}) for entry in plan.tenants)
    update = {"apps": apps, "models": models, "devices": devices, "nodes": (app,), "tenants": tenants}
    return plan.model_copy(update=update)


def test_views_and_their_tables(plan: ExecutionPlan) -> None:
    page = read(render_page(plan).html)
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["devices", "chains", "sharing", "solver"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["#devices", *(f"#{name}" for name in sections)], "a way past the navigation, and to every view"
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for name in sections:
        inside = _inside(page, str(name))
        assert "svg" in inside, name
        assert "table" in inside, name
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_every_part_of_a_picture_has_a_note(plan: ExecutionPlan) -> None:
    page = read(render_page(plan).html)
    notes = json.loads(page.blocks["notes"])
    keys = {attributes["data-key"] for _, attributes in page.tags if attributes.get("data-key")}
    assert keys <= notes.keys()
    for kind in "dbsav":
        assert any(key and key.startswith(kind) for key in keys), kind
    cells = [a for t, a in page.tags if t == "rect" and str(a.get("data-key")).startswith("b")]
    resident = {device: set() for device in range(len(plan.devices))}
    for instance in plan.instances:
        for device in instance.devices:
            for segment in instance.segments:
                entry = plan.segments[segment]
                resident[device] |= set(plan.paths[entry.path].blocks[entry.first : entry.first + entry.count])
    assert len(cells) == sum(map(len, resident.values())), "a cell for each block on each device"


def test_strength_says_how_many_apps_share(plan: ExecutionPlan) -> None:
    facts = facts_of(plan)
    assert [facts.level(count) for count in (0, 1)] == [1, 1]
    levels = [facts.level(count) for count in range(1, facts.most_apps + 1)]
    assert levels == sorted(levels)
    assert levels[-1] == 5
    digest = plan.paths[plan.chains[1].path].blocks[4]
    assert [plan.apps[app].address for app in facts.apps_of_block[digest]] == ["acme/legal", "zoo/law"]


@pytest.mark.parametrize("evil", EVIL)
def test_names_stay_text(plan: ExecutionPlan, evil: str) -> None:
    """The same elements and attributes as with harmless names; the names as they are, or as visible escapes."""
    harmless = read(render_page(renamed(plan, "tenant", "app"), against=plan, live=True).html)
    hostile = read(render_page(renamed(plan, evil, evil), against=plan, live=True).html)
    assert [(tag, attributes.keys()) for tag, attributes in hostile.tags] == [
        (tag, attributes.keys()) for tag, attributes in harmless.tags
    ]
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in evil)
    assert any(shown in words for words in hostile.words)
    notes = json.loads(hostile.blocks["notes"])
    assert any(shown in value for _, rows in notes.values() for _, value in rows)
    apps = json.loads(hostile.blocks["apps"])
    assert {app[0] for app in apps} == {shown}
    scripts = {name: text for name, text in hostile.blocks.items() if name not in ("notes", "apps")}
    assert scripts == {name: text for name, text in harmless.blocks.items() if name not in ("notes", "apps")}


@pytest.mark.parametrize("evil", EVIL)
def test_names_stay_text_in_pictures(plan: ExecutionPlan, evil: str) -> None:
    harmless, hostile = (renamed(plan, name, name) for name in ("tenant", evil))
    assert [tag for tag, _ in read(render_svg(hostile)).tags] == [tag for tag, _ in read(render_svg(harmless)).tags]
    chart = render_mermaid(hostile)
    assert len(chart.splitlines()) == len(render_mermaid(harmless).splitlines())
    for line in chart.splitlines():
        labels = re.findall(r'"([^"]*)"', line)
        assert line.count('"') == 2 * len(labels)
        for label in labels:
            assert not set(label.replace("<br>", "")) & set("<>`{}[]|&\x1b\u202e")


def test_nothing_is_fetched_and_no_code_but_ours_runs(plan: ExecutionPlan) -> None:
    page = render_page(plan, live=True)
    found = read(page.html)
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "action")]
        href = attributes.get("href")
        assert href is None or href.startswith(("#", "data:,"))
    policy = next(str(a["content"]) for t, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == page.policy
    assert policy.startswith("default-src 'self'; script-src 'sha256-")
    assert "unsafe" not in policy
    code = [text for name, text in found.blocks.items() if name.startswith("script")]
    style = [text for name, text in found.blocks.items() if name.startswith("style")]
    for text in (*code, *style):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(code) == len(style) == 1
    assert "url(" not in style[0]
    assert "@import" not in style[0]


@pytest.mark.parametrize("name", ["page.js", "live.js"])
def test_scripts_write_text_only(name: str) -> None:
    code = files("blockc.render.page").joinpath(name).read_text(encoding="utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "import("):
        assert forbidden not in code
    assert "</script" not in code
    assert set(re.findall(r"https?://[^\"' ]+", code)) <= {"http://www.w3.org/2000/svg"}


def test_same_plan_same_bytes(plan: ExecutionPlan, tmp_path: Path) -> None:
    """In processes that order sets differently."""
    write_plan(plan, tmp_path / "plan.json")
    digests = set()
    for seed in ("1", "2", "3"):
        done = subprocess.run(
            [sys.executable, "-m", "blockc", "viz", str(tmp_path / "plan.json"), "--format", "html"],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        )
        digests.add(hashlib.sha256(done.stdout).hexdigest())
    assert digests == {hashlib.sha256(render_page(plan).html.encode()).hexdigest()}


def test_small() -> None:
    """A thousand fine-tunes, and the page still travels as one picture does."""
    apps = [(f"tenant-{index % 40}", f"app-{index}", 2 + index) for index in range(1000)]
    page = render_page(fleet_plan(adapters=1000, apps=apps, memory_bytes=1 << 30, devices=12), live=True)
    assert len(gzip.compress(page.html.encode(), mtime=0)) < 250_000


def test_a_plan_without_apps(plan: ExecutionPlan) -> None:
    words = " ".join(read(render_page(plan.model_copy(update={"apps": ()})).html).words)
    assert "No app uses this plan." in words


def test_against_itself_nothing_changes(plan: ExecutionPlan) -> None:
    words = " ".join(read(render_page(plan, against=plan).html).words)
    assert "Nothing changes." in words
    facts = facts_of(plan)
    change = change_of(facts, facts)
    assert (change.added, change.removed, change.added_bytes, change.removed_bytes) == (frozenset(), frozenset(), 0, 0)


def test_what_changes() -> None:
    """The tuned checkpoint's app leaves, one comes: its layer goes, and nothing is loaded."""
    old = fleet_plan(apps=APPS, memory_bytes=1 << 20, devices=2)
    new = fleet_plan(apps=[("acme", "chat", 2), ("new", "chat", 0)], devices=2)
    gone = new.paths[new.chains[1].path].blocks[4]
    blocks = {digest: block for digest, block in new.blocks.items() if digest != gone}
    chains = tuple(chain.model_copy(update={"path": new.chains[0].path}) for chain in new.chains)
    paths = {new.chains[0].path: new.paths[new.chains[0].path]}
    without = new.model_copy(update={"blocks": blocks, "chains": chains, "paths": paths})
    change = change_of(facts_of(without), facts_of(old))
    assert change.removed == {gone}
    assert change.added == frozenset()
    assert change.removed_bytes == sum(tensor.nbytes for tensor in old.blocks[gone].tensors.values())
    text = change_text(facts_of(new), facts_of(old))
    assert re.search(r"acme/chat +another version", text)
    assert re.search(r"new/chat +added", text)
    assert re.search(r"zoo/lore +removed", text)


def _inside(page: Read, section: str) -> list[str]:
    names = [tag for tag, attributes in page.tags]
    start = next(i for i, (tag, a) in enumerate(page.tags) if tag == "section" and a.get("id") == section)
    end = next((i for i in range(start + 1, len(names)) if names[i] in ("section", "aside")), len(names))
    return names[start:end]
