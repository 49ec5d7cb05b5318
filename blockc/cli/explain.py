"""``blockc explain why PLAN APP BLOCK`` and ``blockc explain pair PLAN APP APP``: evidence for what is shared.

In: a plan, and its zoo if it is there. Out: text, or with ``--json`` one document. Reads no tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockc.cli.options import JsonOption, PlanArgument, ZooOption, zoo_of

if TYPE_CHECKING:
    from blockc.plan import ChainEntry, EvidenceManifest, ExecutionPlan, SideManifest

AppArgument = Annotated[str, typer.Argument(metavar="APP", help="An app, as clients call it: `tenant/app`.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Say why a plan shares what it shares.", no_args_is_help=True)
    group.command("why")(why)
    group.command("pair")(pair)
    app.add_typer(group, name="explain")


def why(
    plan: PlanArgument,
    app: AppArgument,
    block: Annotated[
        str,
        typer.Argument(
            metavar="BLOCK", help="Its number, a module such as `layers.3.mlp`, or the first digits of its digest."
        ),
    ],
    zoo: ZooOption = None,
    as_json: JsonOption = False,
) -> None:
    """Why a block is shared or private: who passes it, what differs from its nearest sibling, what bounds it."""
    from dataclasses import asdict

    from blockc.cli.report import print_document, reporting
    from blockc.explain import explain_why, find_app, find_occurrence, why_text
    from blockc.plan import load_plan

    with reporting("explain why", as_json=as_json):
        loaded = load_plan(plan)
        index = find_app(loaded, app)
        entry = loaded.apps[index]
        occurrence = find_occurrence(loaded, entry, block)
        chain = loaded.chains[entry.chain]
        assumed = "weights:assumed" in loaded.requires  # nothing of such a plan is in a zoo
        sides = None if assumed else _sides(chain, zoo_of(zoo, plan), given=zoo is not None)
        evidence = None if assumed else _evidence(loaded, index, zoo_of(zoo, plan), given=zoo is not None)
        found = explain_why(loaded, index, occurrence, sides=sides, evidence=evidence)
    if as_json:
        print_document("explain why", ok=True, **asdict(found))
    else:
        print(why_text(found), end="")


def pair(plan: PlanArgument, app: AppArgument, other: AppArgument, as_json: JsonOption = False) -> None:
    """What two apps have in common: weights, launches, cached keys and values, and what that buys."""
    from dataclasses import asdict

    from blockc.cli.report import print_document, reporting
    from blockc.explain import explain_pair, find_app, pair_text
    from blockc.plan import load_plan

    with reporting("explain pair", as_json=as_json):
        loaded = load_plan(plan)
        found = explain_pair(loaded, find_app(loaded, app), find_app(loaded, other))
    if as_json:
        print_document("explain pair", ok=True, **asdict(found))
    else:
        print(pair_text(found), end="")


def _evidence(plan: ExecutionPlan, app: int, root: Path, *, given: bool) -> EvidenceManifest | None:
    """What each tensor of the app's model lost. None: it lost nothing, or there is no zoo to read it from."""
    from blockc.plan import EvidenceManifest
    from blockc.zoo import Zoo

    model = plan.models.get(plan.apps[app].model)
    if model is None or model.sharing is None or not (given or root.is_dir()):
        return None
    return EvidenceManifest.model_validate_json(Zoo(root).blob(model.sharing.tensors))


def _sides(chain: ChainEntry, root: Path, *, given: bool) -> SideManifest | None:
    """The chain's manifest. None: it has none, or no zoo was named and none is beside the plan, which the text says."""
    from blockc.plan import SideManifest
    from blockc.zoo import Zoo

    if chain.sides is None or not (given or root.is_dir()):
        return None
    return SideManifest.model_validate_json(Zoo(root).blob(chain.sides))
