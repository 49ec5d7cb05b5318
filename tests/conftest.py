"""What all tests share: golden files, and one flag to write them anew.

`pytest --update-golden` overwrites the files under `tests/golden/`; the diff is then reviewed like code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blockc.cli import main
from tests.support.device import DEVICE
from tests.support.triton_interpreter import interpret

if DEVICE == "cpu":
    interpret()

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", default=False, help="write the golden files anew")
    parser.addoption("--fleet-requests", type=int, default=10_000, help="of the long test of manners")
    parser.addoption("--soak-s", type=float, default=600.0, help="how long the soak test lasts")


@pytest.fixture(autouse=True, scope="session")
def _traced_once() -> Iterator[None]:
    """What `compile` does with a trace is the same for the first and for the tenth model of a configuration."""
    from tests.support.traced_once import traced_once  # here, since it imports torch

    with traced_once():
        yield


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    errors: str


@pytest.fixture
def blockc(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command line in this process: torch is imported once. No traceback, whatever happens."""

    def run(*arguments: object) -> Ended:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, errors = capfd.readouterr()
        assert "Traceback" not in errors + out
        assert "BC999" not in errors + out
        return Ended(code, out, errors)

    return run


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with `tests/golden/NAME`, or write it there with `--update-golden`."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
            return
        assert path.exists(), f"no {path}; run pytest with --update-golden"
        assert text == path.read_bytes().decode("utf-8")

    return compare


Promised = Callable[..., None]


@pytest.fixture
def promised(record_property: Callable[[str, Any], None]) -> Promised:
    """Put a figure beside what was promised, for `python -m benchmarks.promises`.

    The test's own bounds decide if it fails. Its bounds leave room for machines that do other things;
    `kept` says whether the promise is kept without that room.
    """

    def put(what: str, promise: str, measured: str, *, kept: bool) -> None:
        record_property("promise", {"what": what, "promised": promise, "measured": measured, "kept": bool(kept)})

    return put
