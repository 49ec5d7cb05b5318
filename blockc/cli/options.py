"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="The spec, a `.blk` file.")]
VarOption = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="Set a variable of the spec; may be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")]


class ProgressMode(StrEnum):
    """How a command says on stderr how far it is. ``auto``: bars on a terminal, else a line for each stage."""

    AUTO = "auto"
    BAR = "bar"
    JSON = "json"
    NONE = "none"


ProgressOption = Annotated[
    ProgressMode, typer.Option("--progress", help="On stderr: bars, one JSON object a line, or nothing.")
]


def variables_of(given: list[str] | None) -> dict[str, str]:
    """Return the variables that ``--var`` options set; a malformed one is a usage error."""
    variables: dict[str, str] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"`{text}` is not NAME=VALUE", param_hint="--var")
        variables[name.strip()] = value
    return variables


PlanArgument = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that `blockc compile` wrote.")]
ZooOption = Annotated[
    Path | None,
    typer.Option("--zoo", metavar="DIR", help="The store of blocks; `zoo` beside the plan if not given."),
]


def zoo_of(given: Path | None, plan: Path) -> Path:
    """Return the zoo's directory: as given, or beside the plan."""
    return given if given is not None else plan.parent / "zoo"


class TargetChoice(StrEnum):
    """What a plan is made for."""

    cpu = "cpu"
    cuda = "cuda"
    sim = "sim"


TargetOption = Annotated[
    TargetChoice | None,
    typer.Option(
        "--target",
        help="What it is for; the devices say, if not given. `sim` needs no weights and reads none: config.json and "
        "adapter_config.json are enough. Its plan can be looked at and simulated, not served.",
    ),
]
