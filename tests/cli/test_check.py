"""The command line: exit codes, what goes where; from outside what is imported and how long it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blockc.cli import COMMANDS, main
from blockc.cli.report import ExitCode, exit_code
from blockc.diag import DiagnosticError, Diagnostics

ROOT = Path(__file__).parent.parent.parent
SPECS = ROOT / "specs"
ERRORS = ROOT / "tests" / "errors"

Finished = subprocess.CompletedProcess[str]


def outside(*arguments: str | Path) -> Finished:
    """A process of its own."""
    program = "import sys; from blockc.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )


@pytest.fixture
def blockc(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """The same in this process."""
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str | Path, cwd: Path = ROOT) -> Finished:
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Finished(arguments, code, *capfd.readouterr())

    return run


def test_a_good_spec() -> None:
    done = outside("check", "--no-files", SPECS / "large.blk")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{SPECS}/large.blk: ok (3 apps, 2 tenants, 3 fine-tunes, 2 bases, 12 devices)\n"


def test_missing_models_are_errors_unless_left_alone(blockc: Callable[..., Finished]) -> None:
    done = outside("check", "specs/small.blk")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error[BC201]: no folder `./models/tiny` for the base `tiny`" in done.stderr
    assert done.stderr.endswith("5 errors, 1 warning\n")
    done = blockc("check", "--no-files", "specs/small.blk")
    assert done.returncode == 0
    assert done.stderr.endswith("1 warning\n")


def test_names_in_messages_are_as_given(blockc: Callable[..., Finished]) -> None:
    done = blockc("check", "BC105-unit.blk", cwd=ERRORS)
    assert "--> BC105-unit.blk:4:31" in done.stderr


@pytest.mark.parametrize("path", ["specs/large.blk", "tests/errors/BC101-reference.blk", "no.blk"])
def test_json_is_one_document_on_stdout(path: str, blockc: Callable[..., Finished]) -> None:
    done = blockc("check", "--no-files", path, "--json")
    document = json.loads(done.stdout)
    assert done.stderr == ""
    assert document["format_version"] == 1
    assert document["command"] == "check"
    assert document["ok"] == (done.returncode == 0)
    assert (document["deployment"] is not None) == document["ok"]
    assert bool(document["diagnostics"]) == (not document["ok"])


def test_variables(blockc: Callable[..., Finished]) -> None:
    done = blockc("check", "specs/large.blk", "--var", "nodes=2", "--json")
    assert len(json.loads(done.stdout)["deployment"]["devices"]) == 6
    assert blockc("check", "specs/large.blk", "--var", "nods=2").returncode == 1
    assert blockc("check", "specs/large.blk", "--var", "nodes").returncode == 64


@pytest.mark.parametrize("arguments", [["check"], ["frob"], ["check", "a", "b"], ["--frob"], ["rule", "BC777"]])
def test_usage_errors(arguments: list[str], blockc: Callable[..., Finished]) -> None:
    done = blockc(*arguments)
    assert done.returncode == 64
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_help_and_version(blockc: Callable[..., Finished]) -> None:
    assert "check" in blockc().stdout
    assert blockc("--version").stdout.startswith("blockc ")
    assert blockc("check", "--help").returncode == 0


def test_rule(blockc: Callable[..., Finished]) -> None:
    done = blockc("rule", "bc401")
    assert done.returncode == 0
    assert done.stdout.startswith("BC401 infeasible-memory (error): ")
    assert blockc("rule", "infeasible-memory").stdout == done.stdout
    assert "BC999" in blockc("rule").stdout


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from blockc.cli import main; main(['check', '--no-files', 'specs/large.blk']);"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    heavy = {
        "torch",
        "transformers",
        "ortools",
        "numpy",
        "safetensors",
        "tokenizers",
        "fastapi",
    }
    assert not loaded & heavy


def test_check_is_quick() -> None:
    """A few times what its third parties take to be imported, in turns on the same machine."""
    checks, imports = [], []
    for _ in range(3):
        start = time.perf_counter()
        outside("check", "specs/small.blk")
        checks.append(time.perf_counter() - start)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import lark, pydantic, rich.console, typer"], check=True)
        imports.append(time.perf_counter() - start)
    assert min(checks) < 6 * min(imports)  # 2 to 3.5 times, measured; importing torch makes it nine


def test_internal_errors_are_reported_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr("blockc.spec.load", broken)
    assert main(["check", "x.blk"]) == 70
    shown = capsys.readouterr()
    assert "error[BC999]: a bug in blockc" in shown.err
    assert "ZeroDivisionError: inside" in shown.err
    assert "Traceback" not in shown.err
    with pytest.raises(ZeroDivisionError):
        main(["--traceback", "check", "x.blk"])


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("blockc.spec.load", interrupted)
    assert main(["check", "x.blk"]) == 130


@pytest.mark.parametrize(("code", "status"), [("BC101", 1), ("BC401", 3), ("BC402", 3), ("BC999", 70), ("BC804", 0)])
def test_exit_codes(code: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    diags = Diagnostics()
    diags.report(code, "x")
    assert exit_code(diags) == ExitCode(status)
    if status:

        def failing(*_args: object, **_kwargs: object) -> None:
            raise DiagnosticError(diags)

        monkeypatch.setattr("blockc.spec.load", failing)
        assert main(["check", "x.blk"]) == status


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -c 'import sys; from blockc.cli import main; sys.exit(main())' rule | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_commands_are_listed_once() -> None:
    assert len(set(COMMANDS)) == len(COMMANDS)
