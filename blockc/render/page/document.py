"""The page: every view in one file that needs nothing else.

In: a plan; another to compare with. Out: :class:`Page`. Invariant: the same plans give the same bytes; nothing in the
file is fetched from anywhere but the server that it came from; it reads without scripts.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from blockc.plan import ExecutionPlan
from blockc.render.facts import Facts, facts_of
from blockc.render.hops import ways_of
from blockc.render.page.chains import chains_section
from blockc.render.page.devices import devices_section, used_devices
from blockc.render.page.difference import difference_section
from blockc.render.page.element import Child, Markup, tag
from blockc.render.page.live import live_section
from blockc.render.page.notes import notes_of
from blockc.render.page.palette import colours_css
from blockc.render.page.sharing import sharing_section
from blockc.render.page.solver import solver_section
from blockc.render.page.table import View, embedded, notes_json
from blockc.render.units import counted, format_bytes, printable, short

if TYPE_CHECKING:
    from blockc.cost.profile import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """``html``: the file. ``policy``: its Content-Security-Policy, for servers to send, too."""

    html: str
    policy: str


def render_page(
    plan: ExecutionPlan,
    *,
    against: ExecutionPlan | None = None,
    live: bool = False,
    profile: Profile | None = None,
) -> Page:
    """``against``: an older plan; ``live``: for a server, whose figures are shown; ``profile``: what times are from."""
    facts = facts_of(plan)
    chains, sharing = chains_section(facts, ways_of(plan, profile)), sharing_section(facts)
    views: list[tuple[str, str, Markup]] = [
        *([("live", "Live", live_section(facts))] if live else []),
        ("devices", "Devices", devices_section(facts)),
        ("chains", "Chains", chains.markup),
        ("sharing", "Sharing", sharing.markup),
        ("solver", "Solver", solver_section(facts)),
    ]
    if against is not None:
        views.insert(0, ("diff", "Diff", difference_section(facts, facts_of(against))))
    script, style = _script(), _style()
    policy = "; ".join(
        [
            "default-src 'self'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "object-src 'none'",
        ]
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", _title(facts)),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the views", href=f"#{views[0][0]}", class_="skip"),
        _header(facts, views),
        tag("main", [markup for _, _, markup in views], id="views"),
        _inspector(),
        tag(
            "script",
            notes_json({**notes_of(facts), **chains.notes, **sharing.notes}),
            type="application/json",
            id="notes",
        ),
        tag("script", _apps_json(facts, chains, sharing), type="application/json", id="apps"),
        tag("script", Markup(script)),
    )
    return Page(html=f'<!doctype html>\n<html lang="en">{head}{body}</html>\n', policy=policy)


def _title(facts: Facts) -> str:
    return f"blockc plan: {counted(len(facts.plan.apps), 'app')} on {counted(len(used_devices(facts)), 'device')}"


def _header(facts: Facts, views: list[tuple[str, str, Markup]]) -> Markup:
    plan = facts.plan
    saved = plan.baselines.pm_bytes / max(1, plan.baselines.ours_bytes)
    figures: list[tuple[str, str]] = [
        (counted(len(plan.apps), "app"), f"of {counted(len({app.tenant for app in plan.apps}), 'tenant')}"),
        (counted(len(plan.blocks), "block"), f"in {counted(len(plan.segments), 'segment')}"),
        (f"{len(used_devices(facts))} of {len(plan.devices)}", "devices in use"),
        (
            format_bytes(plan.baselines.ours_bytes),
            f"of weights, {saved:.{0 if saved >= 100 else 1}f} times less than one model each",
        ),
    ]
    options = [tag("option", app.address, value=str(index)) for index, app in enumerate(plan.apps)]
    pick: Child = tag(
        "label",
        "Follow ",
        tag("select", tag("option", "every app", value=""), options, id="follow"),
        class_="follow",
        hidden=True,
    )
    sim = "assumed weights: it can be looked at and simulated, not served" if plan.target == "sim" else None
    return tag(
        "header",
        tag(
            "div",
            tag("h1", "blockc", tag("span", "plan", class_="muted")),
            tag("p", f"spec {short(plan.spec_digest)}, target {plan.target}, {plan.compiler}", class_="origin"),
            class_="brand",
        ),
        tag("ul", [tag("li", tag("b", big), tag("span", small)) for big, small in figures], class_="figures"),
        tag("p", sim, class_="sim") if sim else None,
        tag(
            "div",
            tag("nav", [tag("a", title, href=f"#{name}") for name, title, _ in views], aria_label="Views"),
            pick,
            class_="bar",
        ),
    )


def _inspector() -> Markup:
    """Filled by the script, and not there without it."""
    return tag(
        "aside",
        tag(
            "div",
            tag("h2", "Details", id="note-title"),
            tag("p", "Point at anything, or move through a picture with Tab and the arrow keys.", id="note-hint"),
            tag("dl", id="note"),
            tabindex=0,
            class_="note",
        ),
        id="inspector",
        aria_labelledby="note-title",
        hidden=True,
    )


def _apps_json(facts: Facts, *views: View) -> Markup:
    """For each app its tenant and name as the page shows them, and the keys of what it passes, its own first."""
    plan = facts.plan
    apps = []
    for index, app in enumerate(plan.apps):
        chain = plan.chains[app.chain]
        blocks = sorted({facts.number_of_block[block] for block in plan.paths[chain.path].blocks})
        keys = [f"a{index}", *(key for view in views for key in view.keys.get(index, ()))]
        keys += [f"d{device}" for device in facts.devices_of_chain[app.chain]]
        keys += [*(f"s{segment}" for segment in chain.segments), *(f"b{block}" for block in blocks)]
        apps.append([printable(app.tenant), printable(app.app), list(dict.fromkeys(keys))])
    return embedded(apps)


def _script() -> str:
    return "".join(_asset(name) for name in ("page.js", "live.js"))


def _style() -> str:
    return _asset("page.css") + colours_css()


def _asset(name: str) -> str:
    return files("blockc.render.page").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
