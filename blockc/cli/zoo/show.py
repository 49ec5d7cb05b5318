"""``blockc zoo show NAME``: a tensor or blob and what it is bound to, or a plan and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption
from blockc.cli.zoo.names import WhichZoo, digest_of, references_of

if TYPE_CHECKING:
    from blockc.diag import Diagnostics
    from blockc.plan import ExecutionPlan
    from blockc.zoo import Survey, Zoo


def show(
    name: Annotated[
        str, typer.Argument(metavar="DIGEST|PLAN", help="The beginning of a digest, or the path of a plan.")
    ],
    zoo: WhichZoo = Path("zoo"),
    as_json: JsonOption = False,
) -> None:
    """Show what a tensor, blob or plan is, and what needs it."""
    from blockc.cli.report import exit_code, print_document, reporting
    from blockc.cli.report import show as show_diagnostics
    from blockc.diag import Diagnostics
    from blockc.diag.json import diagnostics_document
    from blockc.zoo import Zoo, survey

    diags = Diagnostics()
    with reporting("zoo show", as_json=as_json):
        store = Zoo(zoo)
        found = survey(store, diags=diags)
        digest, plan = _named(name, store, found)
        if plan is not None:
            document, text = _show_plan(plan, digest, store, found, diags)
        else:
            document, text = _show_thing(digest, store, found, diags)
    if as_json:
        print_document("zoo show", ok=not diags.has_errors, **document, diagnostics=diagnostics_document(diags))
    else:
        print(text, end="")
        show_diagnostics(diags)
    raise typer.Exit(int(exit_code(diags)))


def _named(name: str, store: Zoo, found: Survey) -> tuple[str, ExecutionPlan | None]:
    """The digest that is meant, and the plan if it is one."""
    import hashlib

    from blockc.plan import dump_plan, load_plan, read_plan

    references = [item.reference for item in found.plans]
    if Path(name).is_file():
        plan = load_plan(Path(name))
        return hashlib.sha256(dump_plan(plan)).hexdigest(), plan
    known = {*found.tensors, *found.blobs, *(item.plan for item in references)}
    if "/" in name or name.endswith(".json"):
        digest = references_of(name, store, references)[0].plan
    else:
        digest = digest_of(name, known, where=str(store.root))
    if digest in {item.plan for item in references}:
        return digest, read_plan(store.blob(digest), digest[:12])
    return digest, None


def _show_plan(
    plan: ExecutionPlan, digest: str, store: Zoo, found: Survey, diags: Diagnostics
) -> tuple[dict[str, Any], str]:
    from blockc.plan import plan_uses
    from blockc.render import counted, format_bytes, short
    from blockc.render.text import render_weights
    from blockc.render.zoo import place_of

    places = [place_of(item) for item in found.plans if item.reference.plan == digest]
    head = [f"plan {digest}", *(f"  referred to as {place}" for place in places)]
    if not places:
        head.append("  not referred to by this zoo: what it alone needs goes with the next `blockc zoo gc`")
    document: dict[str, Any] = {
        "plan": digest,
        "target": plan.target,
        "apps": [app.address for app in plan.apps],
        "bytes": plan.baselines.model_dump(mode="json"),
        "tenants": [entry.model_dump(mode="json") for entry in plan.tenants],
    }
    if str(plan.target) == "sim":
        head.append("  made without weights (target sim): no zoo holds its tensors")
        return document, "\n".join([*head, "", *render_weights(plan)]) + "\n"
    needs = {use.digest: use for use in plan_uses(plan, store.blob, diags)}
    sizes = {item: use.tensor.nbytes for item, use in needs.items() if use.tensor is not None}
    blobs = [item for item, use in needs.items() if use.tensor is None]
    missing = {item: needs[item].what for item in needs if item not in found.tensors and item not in found.blobs}
    alone = [item for item in sizes if found.plans_of.get(item, (digest,)) == (digest,)]
    head += [
        f"  needs {counted(len(sizes), 'tensor')} of {format_bytes(sum(sizes.values()))}, "
        f"{counted(len(blobs), 'blob')}",
        f"  no other plan needs {counted(len(alone), 'tensor')} of {format_bytes(sum(sizes[item] for item in alone))}",
        *(f"  missing here: {short(item)}, {what}" for item, what in missing.items()),
    ]
    document |= {
        "tensors": [
            {"digest": item, "bytes": nbytes, "present": item in found.tensors} for item, nbytes in sizes.items()
        ],
        "blobs": [{"digest": item, "what": needs[item].what, "present": item in found.blobs} for item in blobs],
        "alone": alone,
    }
    for item, what in missing.items():
        diags.report("BC904", f"the zoo at {store.root} lacks {item} ({what})", help="compile the spec again")
    return document, "\n".join([*head, "", *render_weights(plan)]) + "\n"


def _show_thing(digest: str, store: Zoo, found: Survey, diags: Diagnostics) -> tuple[dict[str, Any], str]:
    from blockc.render import format_bytes, short
    from blockc.render.zoo import place_of, render_thing

    uses = {
        item.reference.plan: _uses(store, item.reference.plan, digest, diags)
        for item in found.plans
        if item.reference.plan in found.plans_of.get(digest, ())
    }
    place = {item.reference.plan: place_of(item) for item in found.plans}
    span = found.tensors.get(digest)
    document: dict[str, Any] = {"digest": digest, "bytes": found.nbytes(digest), "uses": uses}
    if span is None:
        title = f"blob {digest}: {format_bytes(found.nbytes(digest))}"
        facts: list[str] = []
    else:
        pack = next(name for name, spans in found.packs.items() if span in spans)
        title = f"tensor {digest}: {span.dtype}[{','.join(map(str, span.shape))}], {format_bytes(found.nbytes(digest))}"
        facts = [f"in packs/{pack} at byte {span.start}"]
        document |= {"dtype": span.dtype, "shape": list(span.shape), "pack": pack, "at_byte": span.start}
    return document, render_thing(
        title,
        facts,
        [(f"{short(plan)}, {place[plan]}", [_words(use) for use in own]) for plan, own in uses.items()],
    )


def _uses(store: Zoo, plan_digest: str, digest: str, diags: Diagnostics) -> list[dict[str, Any]]:
    """Where a plan binds a tensor or blob, with the models and apps behind it."""
    from blockc.plan import plan_uses, read_plan

    plan = read_plan(store.blob(plan_digest), plan_digest[:12])
    chains: dict[str, set[int]] = {}
    for use in plan_uses(plan, store.blob, diags):
        if use.digest == digest:
            chains.setdefault(use.what, set()).update(use.chains)
    return [
        {
            "what": what,
            "chains": sorted(own),
            "models": sorted(name for name, model in plan.models.items() if model.chain in own),
            "apps": [app.address for app in plan.apps if app.chain in own],
        }
        for what, own in chains.items()
    ]


def _words(use: Mapping[str, Any]) -> str:
    from blockc.render import printable

    models, apps = (", ".join(map(printable, use[kind])) for kind in ("models", "apps"))
    return f"{printable(use['what'])}: models {models}; apps {apps}"
