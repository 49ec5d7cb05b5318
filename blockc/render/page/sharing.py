"""Sharing: a row for each fine-tune, its blocks from left to right, one shade for each version of a block.

In: facts. Out: the section, and notes on what tells versions apart. Version A of a run of blocks is the base's own, B,
C and so on are what fine-tunes have in its place. Keys: ``v``, the family, the version and the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from string import ascii_uppercase

from blockc.ir import differing_parts
from blockc.plan import ExecutionPlan
from blockc.render.facts import Facts, root_of, span_words
from blockc.render.page.element import Markup, tag
from blockc.render.page.palette import family_class
from blockc.render.page.table import MOST_ROWS, Note, View, as_table, figure, listed, section, table
from blockc.render.page.track import BOX, NAMES, ROW, TOP, TRACK, axis, clipped, drawing, fits, positions
from blockc.render.units import counted, format_bytes, short

_SHOWN = 12  # differing tensors that a note lists


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Consecutive blocks of one version. ``reference``: the base's path; ``users``: models, in rows' order."""

    family: int
    first: int
    count: int
    version: int
    path: str
    reference: str
    users: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"v{self.family}-{self.first}-{self.version}"

    @property
    def letter(self) -> str:
        letters = ascii_uppercase
        return letters[self.version] if self.version < len(letters) else f"{self.version + 1}"


def sharing_section(facts: Facts) -> View:
    """The view and its notes."""
    pictures: list[Markup] = []
    notes: dict[str, Note] = {}
    rows: list[list[str]] = []
    keys: dict[str, list[str]] = {}
    for family, name in enumerate(facts.families):
        models = _models(facts, family)
        if not models:
            continue
        paths = dict.fromkeys(_path(facts.plan, model) for model in models)
        runs = {path: _runs(facts, family, models, path) for path in paths}
        pictures.append(tag("div", tag("h3", name), figure(_picture(facts, family, models, runs)), class_="node"))
        keys |= {model: [run.key for run in runs[_path(facts.plan, model)]] for model in models}
        for run in {run.key: run for own in runs.values() for run in own}.values():
            notes[run.key] = _note(facts, run)
            rows.append(_table_row(facts, run))
    if not pictures:
        nothing = "The plan names no models that are in use: there is nothing to compare."
        return View(markup=section("sharing", "Sharing", nothing))
    lead = (
        "Every row is a model, its blocks from first to last. A is the base's own block, stored and launched once for "
        "all the rows that have it; B, C and so on are what a fine-tune has in its place. Equal letters in a column "
        "are the same bytes. Adapters stand beside the blocks and take nothing from their sharing."
    )
    head = ["model of", "blocks", "version", "models", "bytes", "differs from A in"]
    content = as_table(table("Versions of blocks", head, rows))
    return View(
        markup=section("sharing", "Sharing", lead, _legend(), pictures, content),
        notes=notes,
        keys={index: keys.get(app.model, []) for index, app in enumerate(facts.plan.apps)},
    )


def _legend() -> Markup:
    entries = [
        tag("li", tag("span", "A", class_="key f0 s4"), tag("span", "the base's own")),
        tag("li", tag("span", "B", class_="key f0 s2"), tag("span", "a fine-tune's, shared by several models")),
        tag("li", tag("span", "C", class_="key hatch"), tag("span", "of one model alone")),
    ]
    return tag("ul", entries, class_="legend")


def _picture(facts: Facts, family: int, models: list[str], runs: dict[str, list[_Run]]) -> Markup:
    plan = facts.plan
    colour = family_class(family)
    cuts = sorted({place for own in runs.values() for run in own for place in (run.first, run.first + run.count)})
    lefts = positions(cuts)
    lines = tag("path", d="M0 6L6 0", class_=f"hatchline {colour}")
    hatch = tag("pattern", lines, id=f"hatch{family}", width=6, height=6, patternUnits="userSpaceOnUse")
    parts: list[Markup] = [tag("defs", hatch), *axis(cuts, lefts)]
    rows = _rows(plan, models)
    for row, (name, beside, path) in enumerate(rows):
        top = TOP + row * ROW
        parts.append(tag("text", clipped(name, 24), x=NAMES - 10, y=top + 17, class_="end"))
        for run in runs[path]:
            parts += _drawn(run, top + (ROW - BOX) // 2, lefts, colour)
        parts.append(tag("text", beside, x=NAMES + TRACK + 14, y=top + 17, class_="muted"))
    return drawing(parts, len(rows), f"Versions of the blocks of {facts.families[family]}")


def _rows(plan: ExecutionPlan, models: list[str]) -> list[tuple[str, str, str]]:
    """Name, what stands beside it, path: of a model each, or where that is too many of all that are alike."""
    if len(models) <= MOST_ROWS:
        return [(model, _beside(plan, model), _path(plan, model)) for model in models]
    alike: dict[tuple[str, str], list[str]] = {}
    for model in models:
        alike.setdefault((_beside(plan, model), _path(plan, model)), []).append(model)
    return [
        (own[0] if len(own) == 1 else counted(len(own), "model"), beside, path) for (beside, path), own in alike.items()
    ]


def _drawn(run: _Run, top: int, lefts: dict[int, float], colour: str) -> Iterator[Markup]:
    left = lefts[run.first]
    width = max(1.5, lefts[run.first + run.count] - left - 3)
    alone = run.version > 0 and len(run.users) == 1
    level = 1 if alone else 4 if run.version == 0 else 2
    box = {"x": round(left, 1), "y": top, "width": round(width, 1), "height": BOX, "rx": 3}
    yield tag("rect", **box, class_=f"c {colour} s{level}", data_key=run.key)
    if alone:
        yield tag("rect", **box, class_="over", fill=f"url(#hatch{run.family})")
    if fits(run.letter, width):
        middle = round(left + width / 2, 1)
        if alone:  # the lines would run through the letter
            yield tag("rect", x=middle - 8, y=top + 3, width=16, height=BOX - 6, rx=2, class_=f"under {colour} s1")
        yield tag("text", run.letter, x=middle, y=top + 14, class_=f"middle label {colour} on{level}")


def _models(facts: Facts, family: int) -> list[str]:
    """Models of a base that are in use, the base first, then those most like it."""
    plan = facts.plan
    base = facts.families[family]
    used = [name for name, model in plan.models.items() if model.chain is not None]
    own = [name for name in used if root_of(plan, name) == base]
    reference = _base_path(facts, family, own)

    def distance(name: str) -> tuple[bool, int, str]:
        blocks, theirs = plan.paths[_path(plan, name)].blocks, plan.paths[reference].blocks
        return name != base, sum(one != other for one, other in zip(blocks, theirs, strict=False)), name

    return sorted(own, key=distance) if own else []


def _base_path(facts: Facts, family: int, models: list[str]) -> str:
    """The path of the base; where no app uses it, that which most models have."""
    plan = facts.plan
    model = plan.models.get(facts.families[family])
    if model is not None and model.chain is not None:
        return plan.chains[model.chain].path
    paths = [_path(plan, name) for name in models]
    return max(paths, key=lambda path: (paths.count(path), path), default="")


def _path(plan: ExecutionPlan, model: str) -> str:
    chain = plan.models[model].chain
    assert chain is not None
    return plan.chains[chain].path


def _runs(facts: Facts, family: int, models: list[str], path: str) -> list[_Run]:
    """The runs of a path: as long as the same models have the same blocks."""
    plan = facts.plan
    reference = _base_path(facts, family, models)
    paths = list(dict.fromkeys([reference, *(_path(plan, model) for model in models)]))
    found: list[_Run] = []
    for place, block in enumerate(plan.paths[path].blocks):
        # Named after the first path that has it: a fine-tune's own blocks have one letter from end to end.
        version = next(i for i, name in enumerate(paths) if plan.paths[name].blocks[place : place + 1] == (block,))
        users = tuple(m for m in models if place < len(b := plan.paths[_path(plan, m)].blocks) and b[place] == block)
        last = found[-1] if found else None
        if last is not None and (last.version, last.users) == (version, users):
            found[-1] = replace(last, count=last.count + 1)
        else:
            found.append(
                _Run(family=family, first=place, count=1, version=version, path=path, reference=reference, users=users)
            )
    return found


def _beside(plan: ExecutionPlan, model: str) -> str:
    entry = plan.models[model]
    assert entry.chain is not None
    chain = plan.chains[entry.chain]
    words = [f"adapter, rank {chain.side_rank}"] if chain.side_rank else ["adapter"] if chain.sides else []
    if entry.merged is not None:
        words.append("merged")
    if entry.sharing is not None:
        words.append(f"kept as {entry.sharing.verdict}")
    if entry.quantization is not None:
        words.append(f"int{entry.quantization.bits}")
    return ", ".join(words)


def _differs(facts: Facts, run: _Run) -> tuple[str, ...]:
    """Parts in which any block of the run differs from the base's at its place."""
    plan = facts.plan
    if run.version == 0:
        return ()
    reference = plan.paths[run.reference].blocks
    found: set[str] = set()
    for place in range(run.first, run.first + run.count):
        if place >= len(reference):
            return ("depth",)
        own = plan.blocks[plan.paths[run.path].blocks[place]]
        found |= set(differing_parts(own.parts, plan.blocks[reference[place]].parts))
    return tuple(sorted(part.removeprefix("tensor:") for part in found))


def _bytes(facts: Facts, run: _Run) -> int:
    blocks = facts.plan.paths[run.path].blocks[run.first : run.first + run.count]
    return sum(t.nbytes for t in {t for block in blocks for t in facts.plan.blocks[block].tensors.values()})


def _note(facts: Facts, run: _Run) -> Note:
    plan = facts.plan
    apps = [app.address for app in plan.apps if app.model in run.users]
    differs = _differs(facts, run)
    rows = [
        ("of", facts.families[run.family]),
        ("weights", f"{format_bytes(_bytes(facts, run))}, stored once"),
        ("models", listed(run.users)),
        ("apps", listed(apps)),
        ("first block", short(plan.paths[run.path].blocks[run.first])),
    ]
    if run.version == 0:
        rows.append(("evidence", "all of these models have it by one digest, of structure and weights"))
    else:
        more = f" and {len(differs) - _SHOWN} more" if len(differs) > _SHOWN else ""
        rows.append(("differs from A in", ", ".join(differs[:_SHOWN]) + more))
    for model in run.users if run.version else ():
        sharing = plan.models[model].sharing
        if sharing is not None:
            lost = f", at most {sharing.lost:.1%} of a tensor's change lost" if sharing.lost else ""
            rows.append((f"{model} is kept", f"{sharing.verdict} on {sharing.base}{lost}"))
    return f"Version {run.letter} of {span_words('block', run.first, run.first + run.count - 1)}", rows


def _table_row(facts: Facts, run: _Run) -> list[str]:
    return [
        facts.families[run.family],
        span_words("block", run.first, run.first + run.count - 1),
        run.letter,
        f"{counted(len(run.users), 'model')}: {listed(run.users)}",
        format_bytes(_bytes(facts, run)),
        ", ".join(_differs(facts, run)) or "nothing: it is A",
    ]
