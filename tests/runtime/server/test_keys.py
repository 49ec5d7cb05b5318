"""Keys: the file, and every key on every route and model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from blockc.diag import DiagnosticError
from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.keys_file import load_keys
from blockc_runtime.server.serve import listen
from tests.conftest import Promised
from tests.runtime.server import world
from tests.runtime.server.running import RunningServer, running

TENANTS = frozenset({"acme", "birch"})
KEYS = {
    "acme": ["sk-acme-first", "sha256:" + hashlib.sha256(b"sk-acme-second").hexdigest()],
    "birch": ["sk-birch-only"],
    "*": ["sk-operator-key"],
}
KEY_OF = {
    "acme": ("sk-acme-first", "sk-acme-second"),
    "birch": ("sk-birch-only",),
    "*": ("sk-operator-key",),
}
BAD = (None, "Bearer", "Bearer sk-wrong-key", "sk-acme-first", "Basic sk-acme-first",
       "Bearer sk-acme-first sk-acme-first", "Bearer SK-ACME-FIRST", "Bearer " + KEYS["acme"][1],
       "Bearer " + "x" * 8000)  # fmt: skip
ROUTES = (
    ("GET", "/v1/models"),
    ("GET", "/v1/models/acme/chat"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/version"),
    ("GET", "/openapi.json"),
    ("GET", "/metrics"),
    ("GET", "/nothing"),
    ("GET", "/"),
    ("GET", "/docs"),
    ("PUT", "/v1/models"),
    ("GET", "/health/"),
    ("GET", "//health"),
    ("OPTIONS", "/v1/completions"),
)


@pytest.fixture(scope="module")
def guarded(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(json.dumps(KEYS))
    with running(catalogue, keys=KeyRing(load_keys(path, TENANTS))) as server:
        yield server


def call(server: RunningServer, method: str, path: str, key: str | None, **options) -> httpx.Response:
    headers = {} if key is None else {"Authorization": key}
    return httpx.request(method, server.url + path, headers=headers, timeout=10, **options)


MODEL_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/classify", "/tokenize", "/detokenize")


def body(path: str, model: str) -> dict[str, object]:
    if path == "/v1/classify":
        return {"model": model, "input": "hi"}
    if path == "/detokenize":
        return {"model": model, "tokens": [5, 6]}
    if path == "/tokenize":
        return {"model": model, "prompt": "hi"}
    if "chat" in path.split("/"):
        return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    return {"model": model, "prompt": [5, 6], "max_tokens": 2}


@pytest.mark.promise("isolation")
def test_every_tenant_with_every_model_on_every_route(guarded, promised: Promised):
    """A model of one's own is served or refused for what it is asked; another's is not there, whatever the route."""
    tried = foreign = 0
    for caller, keys in KEY_OF.items():
        for tenant, app in world.APPS:
            model = f"{tenant}/{app}"
            calls = [("POST", path, {"json": body(path, model)}) for path in MODEL_ROUTES]
            calls.append(("GET", f"/v1/models/{model}", {}))
            for method, path, options in calls:
                answer = call(guarded, method, path, f"Bearer {keys[0]}", **options)
                tried += 1
                if caller not in (tenant, "*"):
                    foreign += answer.status_code != 404 or tenant in answer.text.replace(model, "")
                else:
                    assert answer.status_code in (200, 400), path
            listed = call(guarded, "GET", "/v1/models", f"Bearer {keys[0]}").text
            foreign += caller not in (tenant, "*") and model in listed
    assert foreign == 0
    figure = f"{tried} combinations of key, model and route: {foreign} opened"
    promised("tenant x model x route", "another's model is not there", figure, kept=foreign == 0)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_without_a_key(guarded, method, path):
    for key in BAD:
        answer = call(guarded, method, path, key)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_state_is_open(guarded):
    for path in ("/health", "/ready"):
        for method in ("GET", "HEAD"):
            assert call(guarded, method, path, None).status_code == 200


def test_two_authorization_headers_are_none(guarded):
    headers = [("Authorization", "Bearer sk-acme-first"), ("Authorization", "Bearer sk-birch-only")]
    assert httpx.get(guarded.url + "/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("caller", ["acme", "birch", "*"])
def test_each_key_with_each_model(guarded, path, caller):
    for key in KEY_OF[caller]:
        bearer = f"Bearer {key}"
        for tenant, app in world.APPS:
            answer = call(guarded, "POST", path, bearer, json=body(path, f"{tenant}/{app}"))
            assert answer.status_code == (200 if caller in (tenant, "*") else 404)


@pytest.mark.parametrize("caller", ["acme", "birch", "*"])
def test_each_key_sees_its_own_models(guarded, caller):
    bearer = f"Bearer {KEY_OF[caller][0]}"
    own = [f"{tenant}/{app}" for tenant, app in world.APPS if caller in (tenant, "*")]
    listed = call(guarded, "GET", "/v1/models", bearer).json()["data"]
    assert [entry["id"] for entry in listed] == own
    for tenant, app in world.APPS:
        answer = call(guarded, "GET", f"/v1/models/{tenant}/{app}", bearer)
        assert answer.status_code == (200 if f"{tenant}/{app}" in own else 404)


def test_another_tenants_model_looks_like_none(guarded):
    """Byte for byte, but for the name; also if the rest of the body is wrong."""
    for extra in ({}, {"max_tokens": -1}, {"prompt": None}):
        answers = []
        for model in ("birch/chat", "birch/nope"):
            fields = {**body("/v1/completions", model), **extra}
            answer = call(guarded, "POST", "/v1/completions", "Bearer sk-acme-first", json=fields)
            assert answer.status_code == 404
            headers = {k: v for k, v in answer.headers.items() if k not in ("date", "x-request-id")}
            answers.append((re.sub("birch/(chat|nope)", "MODEL", answer.text), headers))
        assert answers[0] == answers[1]


def test_metrics_show_a_tenant_its_own(guarded):
    for tenant, app in world.APPS:
        fields = body("/v1/completions", f"{tenant}/{app}")
        call(guarded, "POST", "/v1/completions", "Bearer sk-operator-key", json=fields)
    for caller, others in (("acme", "birch"), ("birch", "acme")):
        text = call(guarded, "GET", "/metrics", f"Bearer {KEY_OF[caller][0]}").text
        assert f'tenant="{caller}"' in text
        assert others not in text
        assert "step_rows" not in text
    text = call(guarded, "GET", "/metrics", "Bearer sk-operator-key").text
    assert 'tenant="acme"' in text
    assert 'tenant="birch"' in text
    assert "blockc:step_rows_bucket" in text


def test_toml_is_understood_too(tmp_path: Path):
    path = tmp_path / "keys.toml"
    path.write_text('acme = ["sk-acme-first"]\n')
    ring = KeyRing(load_keys(path, TENANTS))
    caller = ring.caller(b"Bearer sk-acme-first")
    assert caller is not None
    assert caller.tenant == "acme"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "BC003"),
        ("{", "BC001"),
        ("[" * 100_000, "BC001"),
        ("[]", "BC104"),
        ("{}", "BC104"),
        ('{"nobody": ["sk-12345678"]}', "BC101"),
        ('{"acme": "sk-12345678"}', "BC104"),
        ('{"acme": [7]}', "BC104"),
        ('{"acme": ["short"]}', "BC109"),
        ('{"acme": ["sk with blanks"]}', "BC109"),
        ('{"acme": ["sha256:abc"]}', "BC109"),
        ('{"acme": {"keys": "sk-12345678"}}', "BC104"),
        ('{"acme": {"keys": ["sk-12345678"], "requests": 5}}', "BC104"),
        ('{"acme": {"keys": ["sk-12345678"], "requests_per_minute": 0}}', "BC109"),
        ('{"acme": {"keys": ["sk-12345678"], "tokens_per_minute": true}}', "BC109"),
        ('{"*": {"keys": ["sk-12345678"], "tokens_per_minute": 9}}', "BC104"),
        ('{"acme": ["sk-12345678"], "birch": ["sk-12345678"]}', "BC106"),
    ],
)
def test_errors_of_the_file_are_diagnostics(tmp_path: Path, text: str | None, code: str):
    path = tmp_path / "keys.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DiagnosticError) as caught:
        load_keys(path, TENANTS)
    assert [item.code.id for item in caught.value.diagnostics] == [code]
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_without_keys_only_this_machine(host: str):
    with pytest.raises(DiagnosticError) as caught:
        listen(host, 0, with_keys=False)
    assert next(iter(caught.value.diagnostics)).code.id == "BC109"
    for loopback in ("127.0.0.1", "localhost", "127.0.0.2"):
        listen(loopback, 0, with_keys=False).close()


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..b", "192.0.2.1"])
def test_hosts_that_cannot_be_listened_on(host: str):
    with pytest.raises(DiagnosticError) as caught:
        listen(host, 0, with_keys=True)
    assert [item.code.id for item in caught.value.diagnostics] == ["BC109"]
