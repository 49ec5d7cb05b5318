"""A zoo as text: what it holds and for which plans, one of these things in full, and what a collection removed.

In: a survey of the zoo. Out: text. Invariant: pure; names of plans' places come from users and are shown, not obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from blockc.render.units import counted, format_bytes, printable, short
from blockc.zoo import Collected, PlanShare, Survey

_STATES: Final = {
    "there": "in place",
    "gone": "its file is gone",
    "replaced": "another plan lies there",
    "elsewhere": "on another machine",
}


def render_survey(root: str, found: Survey, *, every: bool) -> str:
    """Plans and sums; with ``every`` all packs, tensors and blobs."""
    lines = [
        f"{printable(root)}: {counted(len(found.packs), 'pack')} with {counted(len(found.tensors), 'tensor')} of "
        f"{format_bytes(_sum(found, found.tensors))}, {counted(len(found.blobs), 'blob')} of "
        f"{format_bytes(_sum(found, found.blobs))}; {format_bytes(found.files_bytes)} of files",
        "",
        f"PLANS  ({counted(len(found.plans), 'reference')})",
        *(line for item in found.plans for line in _plan(item)),
        "",
        f"NEEDED BY NO PLAN  ({_amount(found, found.unneeded)}; `blockc zoo gc` removes them)",
    ]
    if every:
        lines += ["", "PACKS", *_packs(found), "", "BLOBS", *_blobs(found)]
    return "\n".join(lines) + "\n"


def place_of(item: PlanShare) -> str:
    """Where a plan was written, and what is there now."""
    state = _STATES[item.state]
    where = f" of {printable(item.reference.host)}" if item.state == "elsewhere" else ""
    return f"{printable(item.reference.place)}{where} ({state})"


def render_collected(root: str, done: Collected) -> str:
    """What was removed, or would be."""
    would = "" if done.files_bytes_after is not None else "would be "
    removed = [span for work in done.packs for span in work.drops]
    rewritten = sum(1 for work in done.packs if work.keeps)
    lines = [f"{would}forgotten: {short(item.plan)} {printable(item.place)}" for item in done.ended]
    lines.append(
        f"{printable(root)}: {counted(len(removed), 'tensor')} of "
        f"{format_bytes(sum(span.end - span.start for span in removed))} and {counted(len(done.blobs), 'blob')} of "
        f"{format_bytes(sum(done.blobs.values()))} {would}removed; {counted(len(done.packs) - rewritten, 'pack')} "
        f"removed, {rewritten} rewritten"
    )
    after = "" if done.files_bytes_after is None else f"; files take {format_bytes(done.files_bytes_after)}"
    before = format_bytes(done.files_bytes_before)
    lines.append(
        f"kept: {counted(done.kept_tensors, 'tensor')} of {format_bytes(done.kept_bytes)}{after}, {before} before"
    )
    return "\n".join(lines) + "\n"


def render_thing(title: str, facts: Sequence[str], uses: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A tensor or blob. ``uses``: a plan, and what it takes the thing for."""
    lines = [title, *(f"  {fact}" for fact in facts)]
    for plan, places in uses:
        lines += [f"  needed by plan {plan}", *(f"    {place}" for place in places)]
    if not uses:
        lines.append("  needed by no plan")
    return "\n".join(lines) + "\n"


def _plan(item: PlanShare) -> Iterator[str]:
    yield (
        f"  {short(item.reference.plan)}  {place_of(item)}: {counted(item.tensors, 'tensor')}, "
        f"{counted(item.blobs, 'blob')}, {format_bytes(item.nbytes)}, {format_bytes(item.own_bytes)} for it alone"
    )


def _packs(found: Survey) -> Iterator[str]:
    for name, spans in found.packs.items():
        yield f"  {name}  {counted(len(spans), 'tensor')}, {format_bytes(sum(s.end - s.start for s in spans))}"
        for span in spans:
            shape = ",".join(map(str, span.shape))
            yield (
                f"    {span.name}  {span.dtype}[{shape}], {format_bytes(span.end - span.start)}, "
                f"{_plans(found, span.name)}"
            )


def _blobs(found: Survey) -> Iterator[str]:
    for digest, nbytes in found.blobs.items():
        yield f"  {digest}  {format_bytes(nbytes)}, {_plans(found, digest)}"


def _plans(found: Survey, digest: str) -> str:
    plans = found.plans_of.get(digest, ())
    if not plans:
        return "a compilation in progress" if digest in found.leased else "no plan"
    return f"plans {', '.join(map(short, plans))}"


def _amount(found: Survey, digests: Sequence[str]) -> str:
    tensors = [digest for digest in digests if digest in found.tensors]
    return (
        f"{counted(len(tensors), 'tensor')}, {counted(len(digests) - len(tensors), 'blob')}, "
        f"{format_bytes(_sum(found, digests))}"
    )


def _sum(found: Survey, digests: Iterable[str]) -> int:
    return sum(found.nbytes(digest) for digest in digests)
