"""``blockc doctor``: whether this machine and this installation are fit, and what to do where they are not.

In: the machine, and a plan that is to be served on it. Out: a line for each thing that was looked at, or one document;
exit code 1 if something does not work. Says that a token or secret is there, never what it is; asks no network.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from blockc.cli.options import JsonOption

_LEAST_DISK_BYTES = 5 << 30
_LEAST_MEMORY_BYTES = 4 << 30
_SIGNS = {"ok": "ok  ", "note": "note", "fail": "FAIL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. ``help_``: what to do; empty where nothing is to be done."""

    what: str
    state: Literal["ok", "note", "fail"]
    found: str
    help_: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    folder: Annotated[
        Path, typer.Option("--zoo", metavar="DIR", help="Where the zoo is to be; this folder, if not given.")
    ] = Path(),
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN", help="Look for the secrets that this plan names, too.")
    ] = None,
    secrets: Annotated[
        Path | None,
        typer.Option("--secrets", metavar="DIR", help="Where they are, as `blockc serve --secrets` has it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether this machine is fit to compile and serve, and what to do where it is not."""
    from blockc.cli.report import ExitCode, print_document, reporting

    findings = list(examine(folder))
    with reporting("doctor", as_json=as_json):
        findings += () if plan is None else _secrets(plan, secrets)
    bad = [finding for finding in findings if finding.state == "fail"]
    if as_json:
        content = [{"what": f.what, "state": f.state, "found": f.found, "help": f.help_ or None} for f in findings]
        print_document("doctor", ok=not bad, findings=content)
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{_SIGNS[finding.state]}  {finding.what:<{width}}  {finding.found}")
            if finding.help_:
                print(f"{'':<{width + 8}}{finding.help_}")
        print("everything works" if not bad else f"{len(bad)} of {len(findings)} do not work")
    raise typer.Exit(int(ExitCode.ERRORS if bad else ExitCode.FINE))


def examine(folder: Path) -> Iterator[Finding]:
    """Look at everything."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _packages, _extras, _solver, _torch, _kernels)
    for check in checks:
        yield from check()
    yield from _memory()
    yield from _disk(folder)
    yield from _hub()
    yield from _loopback()


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(what="python", state="ok", found=version)  # an older one cannot read these files


def _packages() -> Iterator[Finding]:
    """What blockc's own metadata requires, against what is installed."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("blockc") or ()]
    except PackageNotFoundError:
        yield Finding(
            what="blockc", state="note", found="not installed, run from its sources", help_="pip install -e ."
        )
        return
    wrong = []
    needed = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    for item in needed:
        try:
            found = version(item.name)
        except PackageNotFoundError:
            wrong.append(f"{item.name} is missing")
            continue
        if not item.specifier.contains(found, prereleases=True):
            wrong.append(f"{item.name} is {found}, needed is {item.specifier}")
    if wrong:
        yield Finding(what="packages", state="fail", found="; ".join(wrong), help_="pip install --upgrade blockc")
    else:
        yield Finding(
            what="packages", state="ok", found=f"{len(needed)} in the versions that blockc {version('blockc')} needs"
        )


def _extras() -> Iterator[Finding]:
    from importlib.util import find_spec

    for module, extra, purpose in (
        ("peft", "verify", "`blockc verify` compares with it, and some kinds of fine-tune are merged by it"),
        ("compressed_tensors", "quantized", "checkpoints of AWQ and compressed-tensors are read with it"),
    ):
        if find_spec(module) is not None:
            yield Finding(what=f"extra {extra}", state="ok", found=f"{module} is there")
        else:
            help_ = f"{purpose}: pip install 'blockc[{extra}]'"
            yield Finding(what=f"extra {extra}", state="note", found=f"no {module}", help_=help_)


def _solver() -> Iterator[Finding]:
    """A problem with one answer."""
    try:
        from ortools.sat.python import cp_model

        model = cp_model.CpModel()
        x = model.new_int_var(0, 9, "x")
        model.add(3 * x >= 10)
        model.minimize(x)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        status = solver.solve(model)
        works = status == cp_model.OPTIMAL and solver.value(x) == 4
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding(
            what="solver", state="fail", found=_first_line(error), help_="pip install --force-reinstall ortools"
        )
        return
    if works:
        yield Finding(what="solver", state="ok", found="CP-SAT solves")
    else:
        yield Finding(what="solver", state="fail", found="CP-SAT gave a wrong answer", help_="reinstall ortools")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(what="torch", state="fail", found=_first_line(error), help_="reinstall torch: see pytorch.org")
        return
    capability = torch.backends.cpu.get_cpu_capability()
    found = f"{torch.__version__}, {torch.get_num_threads()} threads, CPU capability {capability}"
    yield Finding(what="torch", state="ok", found=found)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            words = f"{properties.name}, {properties.total_memory / (1 << 30):.1f} GiB"
            yield Finding(what=f"cuda {index}", state="ok", found=words)
        return
    from blockc.cli.machine import gpus

    driver = gpus()
    if driver:
        help_ = "torch was built without CUDA, or for another driver: see pytorch.org"
        yield Finding(what="cuda", state="fail", found=f"the driver has {len(driver)}, torch sees none", help_=help_)
    else:
        yield Finding(what="cuda", state="note", found="no CUDA device: plans for `cpu` and `sim` only")


def _kernels() -> Iterator[Finding]:
    try:
        from blockc_runtime.native.library import describe, kernels
    except (ImportError, OSError) as error:
        yield Finding(what="kernels", state="fail", found=_first_line(error), help_="see `torch` above")
        return
    words = describe().removeprefix("kernels: ")
    if kernels() is not None:
        yield Finding(what="kernels", state="ok", found=words)
        return
    compilers = ("c++", "g++", "clang++")
    compiler = next((name for name in compilers if shutil.which(name)), None)
    help_ = (
        "python -m blockc_runtime.native"
        if compiler
        else "install a C++ compiler, then python -m blockc_runtime.native"
    )
    yield Finding(what="kernels", state="note", found=words, help_=help_)


def _memory() -> Iterator[Finding]:
    from blockc.cli.machine import memory_bytes
    from blockc.ir.layout import format_bytes

    total = memory_bytes()
    if total is None:
        yield Finding(what="memory", state="note", found="cannot be told on this system")
    elif total < _LEAST_MEMORY_BYTES:
        help_ = f"compiling a model of a billion parameters takes about {format_bytes(_LEAST_MEMORY_BYTES)}"
        yield Finding(what="memory", state="note", found=format_bytes(total), help_=help_)
    else:
        yield Finding(what="memory", state="ok", found=format_bytes(total))


def _disk(folder: Path) -> Iterator[Finding]:
    from blockc.ir.layout import format_bytes

    here = next((place for place in (folder, *folder.resolve().parents) if place.is_dir()), Path("/"))
    free = shutil.disk_usage(here).free
    if not os.access(here, os.W_OK):
        yield Finding(what="zoo", state="fail", found=f"{here} cannot be written to", help_="name another with --zoo")
    elif free < _LEAST_DISK_BYTES:
        help_ = "a zoo holds every model once: as much as the largest base, at least"
        yield Finding(what="zoo", state="note", found=f"{format_bytes(free)} free", help_=help_)
    else:
        yield Finding(what="zoo", state="ok", found=f"{format_bytes(free)} free")


def _hub() -> Iterator[Finding]:
    """What huggingface_hub would use, without asking it for anything."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    has_token = bool(os.environ.get("HF_TOKEN")) or (home / "token").is_file()
    words = "a token is set" if has_token else "no token: public repositories only"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        words += "; offline: only what is in its cache"
    yield Finding(what="hub", state="ok", found=words)


def _secrets(path: Path, folder: Path | None) -> Iterator[Finding]:
    """Those that are keys of a plan's tenants, each by itself, then all together. Raises `DiagnosticError`."""
    from blockc.diag import DiagnosticError
    from blockc.plan import load_plan
    from blockc_runtime.server.auth import Keys
    from blockc_runtime.server.key_sources import KeySources
    from blockc_runtime.server.secret_places import SecretPlaces

    sources = KeySources(places=SecretPlaces(folder=folder, environment=os.environ))
    named = {entry.tenant: entry.key_secrets for entry in load_plan(path).tenants}
    usable: dict[str, tuple[str, ...]] = {}
    for tenant, name in ((tenant, name) for tenant, names in named.items() for name in names):
        try:
            sources.beside(Keys(), {tenant: (name,)})
        except DiagnosticError as error:
            item = next(iter(error.diagnostics))
            yield Finding(what=f"secret {name}", state="fail", found=item.message, help_=item.help or "")
        else:
            usable[tenant] = (*usable.get(tenant, ()), name)
            yield Finding(what=f"secret {name}", state="ok", found=f"is there, a key of the tenant `{tenant}`")
    try:
        sources.beside(Keys(), usable)
    except DiagnosticError as error:
        for item in error.diagnostics:
            yield Finding(what="secrets", state="fail", found=item.message, help_=item.help or "")
    if not any(named.values()):
        yield Finding(what="secrets", state="ok", found="the plan names none")


def _loopback() -> Iterator[Finding]:
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
        with socket.socket(socket.AF_UNIX):
            pass
    except (OSError, AttributeError) as error:
        help_ = "serving needs a port of this machine, and Unix sockets"
        yield Finding(what="sockets", state="fail", found=_first_line(error), help_=help_)
        return
    yield Finding(what="sockets", state="ok", found="this machine can listen")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
