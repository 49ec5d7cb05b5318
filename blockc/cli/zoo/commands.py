"""The group of commands. Each has a file of its own."""

from __future__ import annotations

import typer

from blockc.cli.zoo.gc import gc
from blockc.cli.zoo.import_ import import_
from blockc.cli.zoo.ls import ls
from blockc.cli.zoo.show import show
from blockc.cli.zoo.verify import verify


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(
        help="What a zoo holds and for which plans; whether it is intact; what may go.",
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    group.command("ls")(ls)
    group.command("show")(show)
    group.command("verify")(verify)
    group.command("gc")(gc)
    group.command("import")(import_)
    app.add_typer(group, name="zoo")
