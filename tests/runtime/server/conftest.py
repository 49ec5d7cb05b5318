"""One server for all tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from blockc.plan import load_plan
from blockc.zoo import Zoo
from blockc_runtime.server.catalogue import Catalogue, load_catalogue
from tests.runtime.server import world
from tests.runtime.server.running import RunningServer, running
from tests.support.plain_http import no_certificates

__all__ = ["no_certificates"]


@pytest.fixture(scope="session")
def world_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def catalogue(world_files: tuple[Path, Path]) -> Catalogue:
    plan, zoo = world_files
    return load_catalogue(load_plan(plan), Zoo(zoo), lambda line: None)


@pytest.fixture(scope="session")
def server(catalogue: Catalogue) -> Iterator[RunningServer]:
    with running(catalogue) as server:
        yield server


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
