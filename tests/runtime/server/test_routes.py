"""Every tenant, every model, every route: another's model and one that does not exist are answered alike."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from blockc_runtime.server.auth import KeyRing
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.keys_file import load_keys
from blockc_runtime.server.openapi import document
from tests.runtime.server import world
from tests.runtime.server.running import RunningServer, running

KEYS = {"acme": "sk-acme-first", "birch": "sk-birch-only", "*": "sk-operator-key"}
MODELS = [f"{tenant}/{app}" for tenant, app in world.APPS]
OWNERS = {model: model.partition("/")[0] for model in MODELS}
MISSING = [
    "acme/none",
    "birch/none",
    "nobody/chat",
    "acme",
    "",
    "acme/chat/",
    "ACME/chat",
    "birch/chat ",
    "../birch/chat",
]
MESSAGES = [{"role": "user", "content": "hi"}]
# Of every route that takes a model in its body: the rest of a body, and what its own tenant gets of a model of text.
BODIES: dict[str, tuple[dict[str, Any], int]] = {
    "/v1/completions": ({"prompt": [5], "max_tokens": 1}, 200),
    "/v1/chat/completions": ({"messages": MESSAGES, "max_tokens": 1}, 200),
    "/v1/classify": ({"input": [5]}, 400),
    "/v1/embeddings": ({"input": [5]}, 400),
    "/tokenize": ({"prompt": "hi"}, 200),
    "/detokenize": ({"tokens": [5]}, 200),
}
WITHOUT_MODEL = {"/v1/models", "/version", "/metrics", "/openapi.json"}
OPEN = {"/health", "/ready"}
# What every answer has of its own.
_OWN_HEADERS = {"date", "x-request-id", "content-length"}


@pytest.fixture(scope="module")
def guarded(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(json.dumps({tenant: [key] for tenant, key in KEYS.items()}))
    with running(catalogue, keys=KeyRing(load_keys(path, frozenset(OWNERS.values())))) as server:
        yield server


@pytest.fixture(scope="module")
def http(guarded: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, timeout=20) as client:
        yield client


def ask(http: httpx.Client, route: str, model: str, key: str | None, **more: Any) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if route == "/v1/models/{model}":
        return http.get(f"/v1/models/{model}", headers=headers)
    return http.post(route, json={"model": model, **BODIES[route][0], **more}, headers=headers)


def likeness(answer: httpx.Response, model: str) -> tuple[Any, ...]:
    """All that an answer tells, but for the name that was asked for."""
    headers = {name: value for name, value in answer.headers.items() if name not in _OWN_HEADERS}
    return answer.status_code, headers, answer.text.replace(json.dumps(f"`{model}`")[1:-1], "`...`")


def test_every_route_is_in_a_table_here():
    assert set(document()["paths"]) | {"/openapi.json"} == {*BODIES, *WITHOUT_MODEL, *OPEN, "/v1/models/{model}"}


@pytest.mark.parametrize("route", [*BODIES, "/v1/models/{model}"])
@pytest.mark.parametrize("tenant", KEYS)
def test_a_tenant_sees_its_own_models_and_no_trace_of_others(http: httpx.Client, tenant: str, route: str):
    missing = likeness(ask(http, route, "nobody/nothing", KEYS[tenant]), "nobody/nothing")
    assert missing[0] == 404
    assert json.loads(missing[2])["error"]["code"] == "model_not_found"
    for model, owner in OWNERS.items():
        answer = ask(http, route, model, KEYS[tenant])
        if tenant in (owner, "*"):
            assert answer.status_code == BODIES.get(route, ({}, 200))[1], (model, answer.text)
        else:
            assert likeness(answer, model) == missing, model
            # Nor does what else is wrong with a call tell: the model is looked at before everything else.
            if route in BODIES:
                wrong = {"nonsense": 1, "prompt": -1, "input": {}, "messages": 3, "tokens": "x"}
                assert likeness(ask(http, route, model, KEYS[tenant], **wrong), model) == missing, model
    if route in BODIES:  # in a path some of them are other routes, or the same after normalisation
        for model in MISSING:
            assert likeness(ask(http, route, model, KEYS[tenant]), model) == missing, model


@pytest.mark.parametrize("route", [*BODIES, "/v1/models/{model}"])
def test_without_a_key_that_is_known_every_model_is_refused_alike(http: httpx.Client, route: str):
    answers = {
        str(likeness(ask(http, route, model, key), model))
        for model in (*MODELS, "nobody/nothing")
        for key in (None, "sk-unknown-key", "x", KEYS["acme"] + "x", KEYS["acme"].upper())
    }
    assert len(answers) == 1
    assert "(401," in answers.pop()


@pytest.mark.parametrize("route", sorted(WITHOUT_MODEL))
def test_routes_without_a_model_need_a_key_and_name_nobody_else(http: httpx.Client, route: str):
    assert http.get(route).status_code == 401
    for tenant in ("acme", "birch"):
        http.post("/v1/completions", headers={"Authorization": f"Bearer {KEYS[tenant]}"}, json={
            "model": f"{tenant}/chat", "prompt": [5], "max_tokens": 1,
        })  # fmt: skip
    for tenant, other in (("acme", "birch"), ("birch", "acme")):
        answer = http.get(route, headers={"Authorization": f"Bearer {KEYS[tenant]}"})
        assert answer.status_code == 200
        assert not re.search(rf"\b{other}\b", answer.text)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_what_is_not_a_route_needs_a_key_as_well(http: httpx.Client, method: str):
    for path in ("/", "/v1", "/v1/unknown", "/admin", "/docs", "/v1/models/../metrics", "//metrics", "/ui"):
        assert http.request(method, path).status_code == 401, path


def test_health_is_open_and_says_nothing(http: httpx.Client):
    for route in sorted(OPEN):
        assert http.get(route).json().keys() == {"status"}
