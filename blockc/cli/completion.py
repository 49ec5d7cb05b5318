"""``blockc completion SHELL`` prints what makes a shell complete blockc's commands and options.

In: the name of a shell. Out: a script on stdout, which asks ``blockc`` itself when the Tab key is pressed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer

_VARIABLE = "_BLOCKC_COMPLETE"


class Shell(StrEnum):
    """Shells that are known."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


_HOW = {
    Shell.bash: '# Put this into ~/.bashrc:  eval "$(blockc completion bash)"',
    Shell.zsh: '# Put this into ~/.zshrc, after compinit:  eval "$(blockc completion zsh)"',
    Shell.fish: "# Put this into ~/.config/fish/config.fish:  blockc completion fish | source",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("completion")(completion)


def completion(shell: Annotated[Shell, typer.Argument(help="The shell that is to complete.")]) -> None:
    """Print what makes a shell complete blockc's commands and options."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # it lists no exports

    script = get_completion_script(prog_name="blockc", complete_var=_VARIABLE, shell=shell.value)
    print(f"{_HOW[shell]}\n{script}")


def prepare(environ: Mapping[str, str] = os.environ) -> None:
    """Where a shell asks for completions, let typer know the shells: its own switch for it adds options to blockc."""
    if _VARIABLE in environ:
        from typer._completion_classes import completion_init

        completion_init()
