"""``blockc apply PLAN --to URL`` swaps a running server to another plan.

In: a plan, and a server whose operator's key is in the environment (BLOCKC_KEY). Out: what changes, and what it took;
nothing was changed where it is refused. Requests in flight end on the plan that they began with.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption, PlanArgument
from blockc.diag import refuse

if TYPE_CHECKING:
    from blockc.cli.load.client import Target
    from blockc.plan import ExecutionPlan

_HELP = "the operator's key is taken from the environment: BLOCKC_KEY=... blockc apply PLAN --to URL"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("apply")(apply)


def apply(
    plan: PlanArgument,
    to: Annotated[str, typer.Option("--to", metavar="URL", help="The server, such as http://127.0.0.1:8000.")],
    key: Annotated[
        str | None, typer.Option(envvar="BLOCKC_KEY", help="The operator's key; others see arguments, not variables.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Swap a running server to another plan; no request fails."""
    from blockc.cli.load.client import Target
    from blockc.cli.report import print_document, reporting
    from blockc.plan import load_plan
    from blockc.render.change import change_text
    from blockc.render.facts import facts_of

    with reporting("apply", as_json=as_json):
        new = load_plan(plan)
        target = Target(to, key)
        old = _plan_of(target)
        done = None if dry_run else _applied(target, plan)
    if as_json:
        print_document("apply", ok=True, **({} if done is None else done))
        return
    print(change_text(facts_of(new), facts_of(old)), end="")
    if done is not None:
        print(f"\n{_sentence(done)}")


def _plan_of(target: Target) -> ExecutionPlan:
    """What the server serves."""
    from blockc.cli.load.client import message_of
    from blockc.plan import read_plan

    status, body = target.exchange("GET", "/plan")
    if status != 200:
        refuse("BC003", f"the server answered {status}: {message_of(body)}", _HELP)
    return read_plan(body, "the server's plan")


def _applied(target: Target, plan: Path) -> dict[str, Any]:
    import json

    from blockc.cli.load.client import message_of
    from blockc.diag import CODES

    status, body = target.exchange("POST", "/admin/plan", plan.read_bytes())
    try:
        content: dict[str, Any] = json.loads(body)
        if status == 200:
            return content
        code, message = content["error"]["code"], content["error"]["message"]
    except (ValueError, KeyError, TypeError):
        code, message = None, message_of(body)
    if code in CODES:
        refuse(code, f"the server refused the plan: {message.removeprefix(f'{code}: ')}", None)
    return refuse("BC003", f"the server answered {status}: {message}", _HELP if status in (401, 403) else None)


def _sentence(done: dict[str, Any]) -> str:
    from blockc.render.units import format_bytes

    if not done["swapped"]:
        return "it was in force already"
    where = "" if done["beside"] else ", in the place of the one before: both did not fit"
    return (
        f"plan {done['plan'][:12]} is in force{where}\n"
        f"  {format_bytes(done['bytes']['kept'])} kept in memory, {format_bytes(done['bytes']['loaded'])} loaded "
        f"in {done['load_s']:.2f} s\n"
        f"  {done['kv_groups']['kept']} of {done['kv_groups']['all']} KV groups go on with what is cached in them\n"
        f"  new requests waited {done['pause_s'] * 1000:.1f} ms, the longest turn of the engine took "
        f"{done['longest_turn_s'] * 1000:.1f} ms"
    )
