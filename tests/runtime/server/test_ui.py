"""The page at `/ui`: who may see it, what is sent with it, and how browsers sign in."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.keys_file import load_keys
from tests.runtime.server.running import RunningServer, running

KEYS = {"acme": ["sk-acme-first"], "birch": ["sk-birch-only"], "*": ["sk-operator-key"]}
MADE: list[int] = []


@dataclass(frozen=True)
class Stub:
    html: str = "<!doctype html><title>acme and birch</title>" + " " * 4000
    policy: str = "default-src 'self'"


def make_page() -> Stub:
    MADE.append(1)
    return Stub()


@pytest.fixture(scope="module")
def guarded(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(json.dumps(KEYS))
    with running(catalogue, keys=KeyRing(load_keys(path, {"acme", "birch"})), make_page=make_page) as server:
        yield server


def get(server: RunningServer, path: str, authorization: str | None, method: str = "GET") -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return httpx.request(method, server.url + path, headers=headers, timeout=10)


def basic(key: str, name: str = "me") -> str:
    return "Basic " + base64.b64encode(f"{name}:{key}".encode()).decode()


def test_operators_see_it(guarded: RunningServer) -> None:
    for authorization in ("Bearer sk-operator-key", basic("sk-operator-key"), basic("sk-operator-key", name="")):
        answer = get(guarded, "/ui", authorization)
        assert answer.status_code == 200
        assert answer.text == Stub().html
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"] == "default-src 'self'; frame-ancestors 'none'"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert get(guarded, "/ui", basic("sk-operator-key"), method="HEAD").status_code == 200
    assert MADE == [1], "it is made once"


def test_tenants_do_not(guarded: RunningServer) -> None:
    for key in ("sk-acme-first", "sk-birch-only"):
        for authorization in (f"Bearer {key}", basic(key)):
            answer = get(guarded, "/ui", authorization)
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "operator_only"
            assert "birch" not in answer.text


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Basic",
        "Basic !",
        basic("sk-wrong-key"),
        "Basic " + base64.b64encode(b"sk-operator-key").decode(),
        "Bearer x",
    ],
)
def test_browsers_are_asked_for_a_key(guarded: RunningServer, authorization: str | None) -> None:
    answer = get(guarded, "/ui", authorization)
    assert answer.status_code == 401
    challenges = answer.headers.get_list("www-authenticate")
    assert challenges[0] == "Bearer"
    assert challenges[1].startswith("Basic realm=")
    assert "acme" not in answer.text


def test_a_browsers_sign_in_reads_figures_and_changes_nothing(guarded: RunningServer) -> None:
    """Browsers send it by themselves, so that it must not open what another site could make them call."""
    authorization = basic("sk-operator-key")
    assert get(guarded, "/metrics", authorization).status_code == 200
    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/completions"),
        ("POST", "/ui"),
        ("POST", "/metrics"),
        ("GET", "/ui/"),
        ("POST", "/admin/plan"),
    ):
        answer = get(guarded, path, authorization, method)
        assert answer.status_code == 401, path
        assert answer.headers.get_list("www-authenticate") == ["Bearer"]


def test_without_keys_and_without_a_page(catalogue: Catalogue, server: RunningServer) -> None:
    assert httpx.get(server.url + "/ui").status_code == 404, "whoever starts it has to bring the page"
    with running(catalogue, make_page=make_page) as open_server:
        answer = httpx.get(open_server.url + "/ui", headers={"Accept-Encoding": "identity"})
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers
        small = httpx.get(open_server.url + "/ui", headers={"Accept-Encoding": "gzip"})
        assert small.headers["content-encoding"] == "gzip"
        assert small.text == answer.text
        assert int(small.headers["content-length"]) < len(answer.content) / 4
