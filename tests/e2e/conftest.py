"""The sample fleet, compiled once and served once for all tests that leave the server as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from blockc.cli import main
from blockc.samples import root
from tests.e2e.fleet import Command, serving
from tests.support.plain_http import no_certificates

__all__ = ["no_certificates"]


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled fleet; its zoo is beside it."""
    path = tmp_path_factory.mktemp("fleet") / "plan.json"
    assert main(["compile", str(root() / "fleet.blk"), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def server(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with serving(plan, tmp_path_factory.mktemp("server")) as command:
        yield command.ready()
        assert "Traceback" not in command.log


@pytest.fixture(scope="session")
def fragile(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """A server beside it, whose engine is killed again and again."""
    with serving(plan, tmp_path_factory.mktemp("fragile")) as command:
        yield command.ready()
        assert "Traceback" not in command.log


@pytest.fixture
def http(server: Command) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client
