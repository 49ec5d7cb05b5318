"""The Grafana dashboard asks for nothing that a running server does not have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.fleet import answer

DASHBOARD = Path(__file__).parents[2] / "examples" / "deploy" / "grafana.json"
SELECTOR = re.compile(r"(blockc:\w+)(?:\{([^}]*)\})?")


def expressions() -> list[str]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return found + [variable.get("definition", "") for variable in dashboard["templating"]["list"]]


def test_every_series_exists_with_its_labels(http: httpx.Client) -> None:
    answer(http, "public/ask", "Hello.", max_tokens=4)
    series: dict[str, set[str]] = {}
    for line in http.get("/metrics").text.splitlines():
        if found := re.match(r"(blockc:\w+)(?:\{(.*)\})? ", line):
            series.setdefault(found[1], set()).update(re.findall(r'(\w+)="', found[2] or ""))
    asked = 0
    for expression in expressions():
        names = set()
        for name, labels in SELECTOR.findall(expression):
            names.add(name)
            assert name in series, expression
            assert set(re.findall(r"(\w+)=", labels)) <= series[name], expression
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            for name in names:
                assert {label.strip() for label in grouped.split(",")} <= series[name], expression
        asked += len(names)
    assert asked > 30
    shown = {name for expression in expressions() for name, _ in SELECTOR.findall(expression)}
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in series}
    assert families == {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}, "and it shows all there are"


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        own = panel["gridPos"]
        cells = {(own["x"] + x, own["y"] + y) for x in range(own["w"]) for y in range(own["h"])}
        assert not cells & taken, panel["title"]
        assert own["x"] + own["w"] <= 24
        taken |= cells
