"""Texts of specs for tests, and a short way to load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from blockc.spec import Deployment, LoadResult, load

CLUSTER = "cluster box { node n { device d : cpu { memory = 1GiB } } }\n"
BASE = 'base tiny : hf("./models/tiny") { }\n'
APP = "tenant me { app chat { model = tiny } }\n"
MINIMAL = BASE + CLUSTER + APP

SPECS = Path(__file__).parent.parent.parent / "specs"


def load_text(
    text: str | bytes,
    folder: Path,
    *,
    variables: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> LoadResult:
    path = folder / "spec.blk"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, variables=variables, environ=environ or {})


def deployment_of(text: str, folder: Path) -> Deployment:
    result = load_text(text, folder)
    assert result.deployment is not None, [item.message for item in result.diagnostics]
    return result.deployment


def codes(result: LoadResult) -> list[str]:
    return [item.code.id for item in result.diagnostics]


def messages(result: LoadResult) -> str:
    return "\n".join(f"{item.code}: {item.message} | {item.help}" for item in result.diagnostics)
