"""``blockc bench URL`` sends a running server load and says how it answers.

In: a server of OpenAI's form, and what to send: requests at a rate, or as a trace says. Out: rates and latencies by
app on stdout, or one document; with ``--against`` how they compare with a saved run. The key comes from the
environment (BLOCKC_KEY) and goes nowhere but to the server.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockc.cli.options import JsonOption
from blockc.diag import refuse

if TYPE_CHECKING:
    from blockc.cli.load.client import Answer
    from blockc.cli.load.figures import Figures


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    url: Annotated[str, typer.Argument(metavar="URL", help="The server, such as http://127.0.0.1:8000.")],
    apps: Annotated[
        list[str] | None, typer.Option("--app", metavar="APP", help="Ask this app; may be repeated. All, if not given.")
    ] = None,
    requests: Annotated[int, typer.Option("--requests", "-n", min=1, max=1_000_000, help="How many to send.")] = 100,
    rate: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Requests a second, at times by chance (Poisson).")
    ] = 4.0,
    prompt: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Length of prompts.")] = 128,
    output: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="Length of answers.")] = 64,
    trace: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Times and lengths of a trace, in place of the three above.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.001, max=1e9, help="How many times faster than the trace.")] = 1.0,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="At most so many requests at a time.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed sends the same load.")] = 0,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the figures of this run.")] = None,
    against: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare with the figures of that run.")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, metavar="PERCENT", help="With --against: exit 1 if anything is worse by more.")
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Load a running server, and measure: tokens a second, time to first token, time per token."""
    import os

    from blockc.cli.load.arrivals import poisson, traced
    from blockc.cli.load.client import Target, send
    from blockc.cli.load.figures import document, figures_of
    from blockc.cli.report import ExitCode, print_document, reporting

    with reporting("bench", as_json=as_json):
        before = None if against is None else _read(against)
        target = Target(url, os.environ.get("BLOCKC_KEY"))
        longest = _chosen(target.models(), apps)
        if trace is None:
            arrivals = poisson(
                longest, requests=requests, rate=rate, prompt_tokens=prompt, output_tokens=output, seed=seed
            )
        else:
            arrivals = traced(longest, trace, requests=requests, speed=speed, seed=seed)
        answers = send(target, arrivals, concurrency=concurrency, seed=seed, done=_Progress(len(arrivals)))
        found = figures_of(answers)
        settings: dict[str, Any] = {"requests": len(arrivals), "apps": sorted(longest), "seed": seed}
        settings |= {"concurrency": concurrency}
        if trace is None:
            settings |= {"rate": rate, "prompt": prompt, "output": output}
        else:
            settings |= {"trace": trace.name, "speed": speed}
        saved = document(found, settings)
        if save is not None:
            _write(save, saved)
    problems = _judged(found, before, tolerance / 100, settings)
    if as_json:
        content = {name: value for name, value in saved.items() if name != "format_version"}
        print_document("bench", ok=not problems, **content, worse=problems)
    else:
        _print(found, None if before is None else before[0], answers, problems)
    failed = bool(problems) or all(answer.error for answer in answers)
    raise typer.Exit(int(ExitCode.ERRORS if failed else ExitCode.FINE))


class _Progress:
    """On a terminal, how many have ended; threads call it, and a line that is a little late does no harm."""

    def __init__(self, total: int) -> None:
        import sys

        self._total, self._ended = total, 0
        self._shown = sys.stderr.isatty()

    def __call__(self, answer: Answer) -> None:
        import sys

        self._ended += 1
        if self._shown:
            end = "\n" if self._ended == self._total else ""
            print(f"\r{self._ended} of {self._total}", end=end, file=sys.stderr, flush=True)


def _chosen(models: dict[str, int], apps: list[str] | None) -> dict[str, int]:
    from blockc.spec.suggest import did_you_mean

    for app in apps or ():
        if app not in models:
            refuse("BC101", f"the server has no app `{app}` for this key", did_you_mean(app, sorted(models)))
    if not models:
        refuse("BC101", "the server has no app for this key", "BLOCKC_KEY=... names another key")
    return {app: models[app] for app in apps} if apps else models


def _judged(
    found: dict[str, Figures],
    before: tuple[dict[str, Figures], dict[str, Any]] | None,
    tolerance: float,
    settings: dict[str, Any],
) -> list[str]:
    """What is worse than before. Another load is no basis for saying so."""
    from blockc.cli.load.figures import worse

    if before is None:
        return []
    figures, old = before
    if old != settings:
        names = sorted(name for name in {*old, *settings} if old.get(name) != settings.get(name))
        return [f"the saved run had another load: {', '.join(names)}"]
    return list(worse(found, figures, tolerance))


def _print(
    found: dict[str, Figures], before: dict[str, Figures] | None, answers: list[Answer], problems: list[str]
) -> None:
    import sys
    from collections import Counter

    from blockc.cli.load.figures import comparison, table
    from blockc.render.units import printable

    print("\n".join(map(printable, table(found))))
    if before is not None:
        print("\nagainst the saved run")
        print("\n".join(map(printable, comparison(found, before))))
    for error, count in Counter(answer.error for answer in answers if answer.error).most_common(5):
        print(f"{count} times: {printable(str(error))}", file=sys.stderr)
    for problem in problems:
        print(f"worse: {problem}", file=sys.stderr)


def _read(path: Path) -> tuple[dict[str, Figures], dict[str, Any]]:
    import json

    from blockc.cli.load.figures import read_document

    try:
        return read_document(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        refuse("BC003", f"cannot read {path}: {error.strerror}", "`--save FILE` writes one")
    except (ValueError, RecursionError):
        refuse("BC003", f"{path} is no saved run", "`--save FILE` writes one")


def _write(path: Path, content: dict[str, Any]) -> None:
    import json

    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        refuse("BC003", f"cannot write {path}: {error.strerror}", "name another file with --save")
