"""Secrets that a plan names as keys: where they are looked for, how they rotate and how a swap changes them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from blockc.diag import DiagnosticError
from blockc_runtime.server.auth import KeyRing, Keys
from blockc_runtime.server.key_sources import KeySources, watch_keys
from blockc_runtime.server.secret_places import SecretPlaces
from tests.runtime.server import world
from tests.runtime.server.test_access import post
from tests.runtime.server.test_swap import MOONS, STARS, Plans, apply, plans, swapping  # noqa: F401 - a fixture
from tests.support.processes import eventually

VALUE = "sk-canary-5d1e0c77"
ACME = {"acme": ("ACME_KEY",), "birch": ()}


def sources(folder: Path | None = None, file: Path | None = None, **environment: str) -> KeySources:
    return KeySources(file=file, places=SecretPlaces(folder=folder, environment=environment))


def owner(keys: Keys, key: str) -> Any:
    return KeyRing(keys).caller(f"Bearer {key}".encode())


def refused(where: KeySources, plan: dict[str, tuple[str, ...]] = ACME) -> list[tuple[str, str]]:
    with pytest.raises(DiagnosticError) as caught:
        where.load(plan)
    told = [(item.code.id, item.message) for item in caught.value.diagnostics]
    assert not any(VALUE in message for _, message in told)
    return told


def test_each_place_is_looked_at(tmp_path: Path):
    (tmp_path / "ACME_KEY").write_text(f"{VALUE}\n")
    for where in (
        sources(ACME_KEY=VALUE),
        sources(ACME_KEY_FILE=str(tmp_path / "ACME_KEY")),
        sources(tmp_path),
        sources(ACME_KEY="sha256:" + hashlib.sha256(VALUE.encode()).hexdigest()),
    ):
        caller = owner(where.load(ACME), VALUE)
        assert (caller.tenant, caller.key) == ("acme", "ACME_KEY")
        assert owner(where.load(ACME), VALUE + "x") is None


def test_a_secret_may_hold_several_keys(tmp_path: Path):
    keys = sources(ACME_KEY=f"sk-the-old-one\n\n {VALUE} \n").load(ACME)
    assert [owner(keys, key).key for key in ("sk-the-old-one", VALUE)] == ["ACME_KEY", "ACME_KEY:2"]


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({}, "is not set"),
        ({"ACME_KEY": ""}, "is empty"),
        ({"ACME_KEY": " \n"}, "is empty"),
        ({"ACME_KEY": "short"}, "has a line that is neither"),
        ({"ACME_KEY": f"{VALUE} {VALUE}"}, "has a line that is neither"),
        ({"ACME_KEY": f"{VALUE}\nshort"}, "has a line that is neither"),
        ({"ACME_KEY": VALUE + "ä"}, "has a line that is neither"),
        ({"ACME_KEY": VALUE, "ACME_KEY_FILE": "/dev/null"}, "and in the file that ACME_KEY_FILE names"),
        ({"ACME_KEY_FILE": "/nothing/here"}, "cannot be read: the file that ACME_KEY_FILE names"),
        ({"ACME_KEY_FILE": "/"}, "cannot be read"),
        ({"ACME_KEY_FILE": "/dev/zero"}, "is longer than any key"),
    ],
)
def test_a_secret_that_is_none_is_refused_by_its_name(environment: dict[str, str], why: str):
    ((code, message),) = refused(sources(**environment))
    assert code == "BC603"
    assert message.startswith("the secret `ACME_KEY`, a key of the tenant `acme`, ")
    assert why in message


def test_a_key_is_one_tenants(tmp_path: Path):
    both = {"acme": ("ACME_KEY",), "birch": ("BIRCH_KEY",)}
    ((code, message),) = refused(sources(ACME_KEY=VALUE, BIRCH_KEY=f"sk-another\n{VALUE}"), both)
    assert code == "BC106"
    assert "`BIRCH_KEY` of the tenant `birch`" in message
    path = tmp_path / "keys.json"
    for other in ("birch", "*"):
        path.write_text(json.dumps({other: [VALUE]}))
        assert [code for code, _ in refused(sources(file=path, ACME_KEY=VALUE))] == ["BC106"]
    path.write_text(json.dumps({"acme": [VALUE], "birch": {"keys": [], "requests_per_minute": 7}}))
    keys = sources(file=path, ACME_KEY=VALUE).load(ACME)
    assert owner(keys, VALUE).key == 1, "as the file has it"
    assert KeyRing(keys).quota("birch").requests_per_minute == 7


def test_files_of_secrets_rotate(catalogue, tmp_path: Path):
    from tests.runtime.server.running import running

    (tmp_path / "ACME_KEY").write_text("sk-acme-first")
    where, lines = sources(tmp_path), []
    ring = KeyRing(where.load(ACME))
    with running(catalogue, keys=ring) as server:
        watching = watch_keys(where, ring, lambda: ACME, lines.append, poll_s=0.02)
        watch = asyncio.run_coroutine_threadsafe(watching, server.loop)
        assert post(server, "sk-acme-first").status_code == 200
        (tmp_path / "ACME_KEY").write_text(f"sk-acme-first\n{VALUE}")
        assert eventually(lambda: post(server, VALUE).status_code == 200, 5)
        assert post(server, "sk-acme-first").status_code == 200
        (tmp_path / "ACME_KEY").write_text(VALUE)
        assert eventually(lambda: post(server, "sk-acme-first").status_code == 401, 5)
        (tmp_path / "ACME_KEY").unlink()
        assert eventually(lambda: any("the keys stay as they were" in line for line in lines), 5)
        assert post(server, VALUE).status_code == 200
        watch.cancel()
    assert VALUE not in "".join(lines)


def with_keys(plans: Plans, name: str, apps=STARS, **secrets: str) -> Path:  # noqa: F811
    return plans.more(name, apps, quotas={tenant: {"key_secrets": (secret,)} for tenant, secret in secrets.items()})


def test_secrets_hold_from_the_swap_on(plans: Plans, tmp_path: Path):  # noqa: F811
    first = with_keys(plans, "keyed.json", acme="ACME_KEY", birch="BIRCH_KEY")
    second = with_keys(plans, "rekeyed.json", MOONS, acme="ACME_KEY", cedar="CEDAR_KEY")
    third = with_keys(plans, "lost.json", MOONS, acme="NOBODY_HAS_THIS")
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"*": ["sk-operator-key"]}))
    (tmp_path / "CEDAR_KEY").write_text(VALUE)
    where = sources(tmp_path, file=path, ACME_KEY="sk-acme-first", BIRCH_KEY="sk-birch-only")
    ring = KeyRing(where.load({"acme": ("ACME_KEY",), "birch": ("BIRCH_KEY",)}))
    operator = {"authorization": "Bearer sk-operator-key"}
    with swapping(plans, plan=first, keys=ring, sources=where) as server:

        def models(key: str) -> list[str] | int:
            answer = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"})
            return [entry["id"] for entry in answer.json()["data"]] if answer.status_code == 200 else answer.status_code

        assert models("sk-birch-only") == ["birch/chat"]
        assert models(VALUE) == 401
        answer = apply(server, third, **operator)
        assert answer.status_code == 400
        assert "NOBODY_HAS_THIS" in answer.text
        assert models("sk-birch-only") == ["birch/chat"], "nothing has changed"
        assert apply(server, second, **operator).status_code == 200
        assert models(VALUE) == ["cedar/chat"]
        assert models("sk-birch-only") == 401, "the new plan gives birch no key"
        assert models("sk-acme-first") == ["acme/chat"]
        assert not any(key in httpx.get(f"{server.url}{path}", headers=operator).text
                       for path in ("/metrics", "/plan") for key in (VALUE, "sk-acme-first"))  # fmt: skip


def test_a_server_that_asks_for_no_keys_takes_no_plan_with_some(plans: Plans):  # noqa: F811
    with swapping(plans) as server:
        answer = apply(server, with_keys(plans, "keyed-too.json", acme="ACME_KEY"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BC905")
        assert "asks nobody for one" in answer.text
        assert httpx.get(f"{server.url}/v1/models").status_code == 200


@pytest.mark.parametrize("wrong", [{"acme": ("A B",)}, {"acme": ("ACME",), "birch": ("ACME",)}])
def test_a_plan_with_wrong_names_contradicts_itself(wrong: dict[str, tuple[str, ...]]):
    from blockc.plan.verify import plan_problem

    plan = world.plan({}, quotas={tenant: {"key_secrets": names} for tenant, names in wrong.items()})
    assert "secret" in str(plan_problem(plan))
