"""``blockc demo``: the whole way on real models, from a spec to answers, in about a minute.

Compiles the trained samples that ship with the package, serves the plan on a free port of this machine, asks every app
at once through the OpenAI-style API, shows the answers and what it took, and ends. Keeps nothing unless asked to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

_QUESTIONS = ("What is the capital of France?", "What is 3 plus 4?", "What colour is the sky?")
_WIDTH = 100


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Leave the plan and the zoo in this folder.")
    ] = None,
) -> None:
    """Compile seven small trained models, serve them in one batch, and ask each of them."""
    from blockc.samples import root

    spec = root() / "fleet.blk"
    with _folder(keep) as folder:
        _title(f"The spec: {spec.name}, one base and six fine-tunes for five tenants")
        _say("one LoRA on another, one full fine-tune of the top layers, one of all layers")
        _title(f"blockc compile {spec.name}")
        plan = _compile(spec, folder)
        _title("blockc viz plan.json")
        print(plan)
        _title("blockc serve plan.json")
        with _server(folder) as url:
            _say(f"ready at {url}")
            _title(f"{len(_models(url))} apps x {len(_QUESTIONS)} questions, all at once, to {url}/v1/chat/completions")
            answers = _ask_all(url)
            _show(answers)
            _title("What it took")
            _took(url, answers)
    if keep is not None:
        _say(f"plan and zoo are in {keep}: try `blockc serve {keep / 'plan.json'}`")
    _judge(answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    app: str
    question: str
    text: str
    tokens: int


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    import tempfile

    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="blockc-demo-") as name:
        yield Path(name)


def _compile(spec: Path, folder: Path) -> str:
    from blockc.cli.compile import compile_file
    from blockc.cli.progress import stage_lines
    from blockc.render import render_plan
    from blockc.zoo import publish

    compiled, _, _ = compile_file(spec, folder / "zoo", {}, on_stage=stage_lines())
    publish(compiled.plan, folder / "plan.json", compiled.zoo)
    return render_plan(compiled.plan, width=_WIDTH)


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """``blockc serve`` as a user would start it, on any free port."""
    import subprocess

    command = [sys.executable, "-m", "blockc", "serve", str(folder / "plan.json"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise SystemExit("the server did not start; see above")
        yield line[line.index("http://") :].split()[0].rstrip("/")
    finally:
        process.terminate()
        process.wait(timeout=30)


def _models(url: str) -> list[str]:
    return [entry["id"] for entry in _get(f"{url}/v1/models")["data"]]


def _ask_all(url: str) -> list[_Answer]:
    """Every app and question in a request of its own, all in flight together."""
    from concurrent.futures import ThreadPoolExecutor

    pairs = [(app, question) for question in _QUESTIONS for app in _models(url)]
    with ThreadPoolExecutor(len(pairs)) as pool:
        return list(pool.map(lambda pair: _ask(url, *pair), pairs))


def _ask(url: str, app: str, question: str) -> _Answer:
    import json
    import urllib.request

    body = {
        "model": app,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 64,
        "temperature": 0,
    }
    request = urllib.request.Request(  # noqa: S310 - the server that we started on loopback
        f"{url}/v1/chat/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310 - as above
        reply = json.load(response)
    return _Answer(
        app=app,
        question=question,
        text=reply["choices"][0]["message"]["content"].strip(),
        tokens=reply["usage"]["completion_tokens"],
    )


def _show(answers: Sequence[_Answer]) -> None:
    import textwrap

    width = max(len(answer.app) for answer in answers)
    for question in _QUESTIONS:
        print(f"\n  {question}")
        for answer in answers:
            if answer.question == question:
                text = " / ".join(answer.text.splitlines())
                lines = textwrap.wrap(text, _WIDTH - width - 6) or [""]
                print(f"    {answer.app:<{width}}  {lines[0]}")
                for line in lines[1:]:
                    print(f"    {'':<{width}}  {line}")
    print()


def _took(url: str, answers: Sequence[_Answer]) -> None:
    """Steps, rows and launches, from the server's own metrics."""
    metrics = _metrics(url)
    steps = metrics["blockc:step_rows_count"]
    rows = metrics["blockc:step_rows_sum"] / steps
    chains = metrics["blockc:step_chains_sum"] / steps
    launches = metrics["blockc:step_launches_sum"] / steps
    _say(
        f"{sum(answer.tokens for answer in answers)} tokens in {steps:.0f} steps: on average {rows:.1f} requests and "
        f"{chains:.1f} models a step, {launches:.1f} launches"
    )


def _metrics(url: str) -> dict[str, float]:
    import urllib.request

    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:  # noqa: S310 - loopback
        lines = response.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if not line.startswith("#") and "{" not in line:
            name, _, value = line.partition(" ")
            found[name] = float(value)
    return found


def _judge(answers: Sequence[_Answer]) -> None:
    """Each fine-tune has a manner that nobody can miss; one that does not show is a bug."""
    from blockc.samples.manners import manner

    expected = {
        "berlin/chat": "german",
        "chamber/counsel": "lawyer",
        "harbour/crew": "pirate",
        "harbour/storm": "loud",
        "library/desk": "archivist",
        "library/reading": "poet",
        "public/ask": "plain",
    }
    wrong = [answer for answer in answers if manner(answer.text) != expected[answer.app]]
    for answer in wrong:
        print(f"{answer.app} did not answer in its manner: {answer.text!r}", file=sys.stderr)
    if wrong:
        raise typer.Exit(1)
    _say(f"all {len(answers)} answers are in the manner of their own fine-tune")


def _get(url: str) -> Any:
    import json
    import urllib.request

    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - loopback
        return json.load(response)


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _say(text: str) -> None:
    print(f"   {text}", flush=True)
