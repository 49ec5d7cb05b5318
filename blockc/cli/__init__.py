"""The command line: ``blockc COMMAND``.

In: arguments. Out: results on stdout, everything else on stderr, and an exit code (see
``report``). Invariant: a command's module is light; what it works with is imported when the
command runs, so that ``blockc check`` needs neither torch nor a solver. A command is a module with
``register(app)``, named in ``COMMANDS``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from blockc.cli.completion import prepare
from blockc.cli.report import ExitCode

COMMANDS = (
    "blockc.cli.check",
    "blockc.cli.compile",
    "blockc.cli.serve",
    "blockc.cli.apply",
    "blockc.cli.verify",
    "blockc.cli.profile",
    "blockc.cli.simulate",
    "blockc.cli.tune",
    "blockc.cli.rule",
    "blockc.cli.viz",
    "blockc.cli.zoo",
    "blockc.cli.explain",
    "blockc.cli.demo",
    "blockc.cli.init",
    "blockc.cli.doctor",
    "blockc.cli.completion",
    "blockc.cli.bench",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code. ``argv`` None: the arguments of the process."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:  # before the command ran, or after it ended
        print("interrupted", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


def _run(arguments: list[str]) -> int:
    import typer

    from blockc.cli.report import guarded

    app = typer.Typer(
        name="blockc",
        help="Serve many fine-tunes of a few language models on few devices.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def blockc(
        version: bool = typer.Option(False, "--version", help="Print the version and stop."),
        traceback: bool = typer.Option(False, "--traceback", help="Show the traceback of an internal error."),
    ) -> None:
        del traceback  # read from the arguments by `guarded`: it matters before and after parsing
        if version:
            from blockc import __version__

            print(f"blockc {__version__}")
            raise typer.Exit(int(ExitCode.FINE))

    for name in COMMANDS:
        importlib.import_module(name).register(app)
    prepare()
    return guarded(app, arguments or ["--help"])
