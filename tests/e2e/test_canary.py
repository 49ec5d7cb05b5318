"""A key that was used on every route, rightly and wrongly, is in nothing that was written or answered."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from blockc.plan import load_plan, write_plan
from blockc_runtime.server.openapi import document
from tests.e2e.fleet import KEYS, chat, serving
from tests.support.processes import eventually

CANARY = "sk-canary-4c1f9ab27d"
TENANT = "harbour"
MODELS = ("harbour/crew", "library/desk", "nobody/nothing", CANARY)
SECRET = "HARBOUR_KEY"
WRONG = [
    *(
        ("keys.json", content)
        for content in ("{", json.dumps({TENANT: [CANARY, "x"]}), json.dumps({CANARY: 3}),
                        json.dumps({TENANT: {CANARY: 1}}), f"[{CANARY}")
    ),
    *((SECRET, content) for content in (f"{CANARY} x", f"{CANARY}\nsk-the-operator", f"sha256:{CANARY}")),
]  # fmt: skip
BODIES: list[dict[str, Any]] = [
    {"prompt": "Hello", "max_tokens": 4},
    {"messages": chat("", "Hello")["messages"], "max_tokens": 4, "stream": True},
    {"input": "Hello"},
    {"tokens": [5, 6]},
    {"prompt": [10**9]},
    {"temperature": 99, "prompt": "Hello"},
    {"response_format": {"type": "xml"}, "messages": [{"role": CANARY, "content": 1}]},
    {CANARY: 1},
    {"stop": {"key": CANARY}},
]


def written(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "keys.json"}


def forms(key: str) -> list[bytes]:
    """The key, and what it could be had from."""
    return [
        key.encode(),
        base64.b64encode(key.encode()).rstrip(b"=")[:-1],
        hashlib.sha256(key.encode()).hexdigest().encode(),
    ]


def with_secret(plan: Path, path: Path) -> Path:
    """The same plan, in which the tenant's key is a secret."""
    old = load_plan(plan)
    tenants = [
        entry.model_copy(update={"key_secrets": (SECRET,)}) if entry.tenant == TENANT else entry
        for entry in old.tenants
    ]
    write_plan(old.model_copy(update={"tenants": tuple(tenants)}), path)
    return path


def test_a_key_is_in_nothing_that_is_written_or_answered(plan: Path, tmp_path: Path, tmp_path_factory):
    """In the keys file and in a secret that the plan names: both are of the same tenant, which may be."""
    audit = tmp_path / "audit.jsonl"
    keys, secret = tmp_path / "keys.json", tmp_path_factory.mktemp("secrets") / SECRET
    right_keys = json.dumps({**KEYS, TENANT: [CANARY], "berlin": ["sha256:" + "0" * 64]})
    keys.write_text(right_keys)
    secret.write_text(f"{CANARY}\n")
    options = ["--audit", str(audit), "--keys", str(keys), "--secrets", str(secret.parent), "--executor", "null"]
    keyed = with_secret(plan, tmp_path / "keyed.json")
    answers: list[tuple[str, bytes]] = []
    with (
        serving(keyed, tmp_path, *options, "--zoo", str(plan.parent / "zoo"), keys=False) as command,
        command.ready().http(None) as http,
    ):

        def send(method: str, path: str, headers: dict[str, str], **more: Any) -> None:
            answer = http.request(method, path, headers=headers, **more)
            # What a client wrote into its own request may be named to it, so only its headers count there.
            own = CANARY in path or CANARY in str(more)
            answers.append((f"{method} {path}", str(answer.headers).encode() + (b"" if own else answer.content)))

        right = {"Authorization": f"Bearer {CANARY}"}
        basic = {"Authorization": "Basic " + base64.b64encode(f"me:{CANARY}".encode()).decode()}
        wrong = [
            {"Authorization": f"bearer  {CANARY}"}, {"Authorization": CANARY}, {"Authorization": f"Bearer {CANARY}x"},
            {"X-Api-Key": CANARY}, {"Cookie": f"key={CANARY}"}, {"X-Request-Id": CANARY * 9},
        ]  # fmt: skip
        for path, operations in {**document()["paths"], "/ui": {"get": {}}, "/v1/none": {"post": {}}}.items():
            for headers in (right, basic, *wrong):
                for method in {*operations, "delete"}:
                    if method != "post":
                        send(method.upper(), path.format(model="harbour/crew"), headers)
            for headers in (right, basic) if "post" in operations else ():
                for model in MODELS:
                    for body in BODIES if headers is right else BODIES[:1]:
                        send("POST", path, headers, json={"model": model, **body})
                send("POST", path, headers, content=b"{")
                send("POST", path, headers, content=json.dumps({"prompt": CANARY}).encode()[:-1])
                send("POST", f"{path}?api_key={CANARY}", headers, json={})
        for key in ("sk-the-operator",):
            for path in ("/metrics", "/ui", "/openapi.json", "/v1/models"):
                send("GET", path, {"Authorization": f"Bearer {key}"})
        for path, content in WRONG:
            seen = command.log.count("keys stay as they were")
            keys.write_text(right_keys)
            (keys if path == "keys.json" else secret).write_text(content)  # what is wrong with it is said
            assert eventually(lambda seen=seen: command.log.count("keys stay as they were") > seen, 10)
            time.sleep(0.01)  # another time of change
        command.kill_engine()
        assert eventually(lambda: http.get("/ready").status_code == 200, 30)
    assert len(answers) > 200
    everything = {**written(tmp_path), str(plan): plan.read_bytes(), **dict(enumerated(answers))}
    assert len(everything[str(audit)]) > 10_000
    for where, content in everything.items():
        for form in forms(CANARY):
            assert form not in content, where


def enumerated(answers: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [(f"{number}: {name}", content) for number, (name, content) in enumerate(answers)]
