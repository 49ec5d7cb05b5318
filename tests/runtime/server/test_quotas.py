"""Quotas: buckets in a time of their own, and what a client sees of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from blockc_runtime.server.auth import KeyRing, Keys
from blockc_runtime.server.catalogue import Catalogue
from blockc_runtime.server.keys_file import key_digest
from blockc_runtime.server.quotas import Quota, QuotaExceededError, Quotas
from tests.runtime.server.running import RunningServer, running


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def quotas(**limits: int) -> tuple[Quotas, Clock]:
    clock = Clock()
    return Quotas(lambda tenant: Quota(**limits), clock), clock


def test_requests_come_back_steadily():
    own, clock = quotas(requests_per_minute=6)
    for _ in range(6):
        own.reserve("acme", 10**9)
    with pytest.raises(QuotaExceededError) as caught:
        own.check("acme")
    assert (caught.value.what, caught.value.limit, caught.value.retry_after_s) == ("requests", 6, 10)
    own.reserve("birch", 1)  # another tenant's
    own.reserve(None, 1)  # the operator
    clock.now_s += 9.9
    with pytest.raises(QuotaExceededError):
        own.reserve("acme", 1)
    clock.now_s += 0.2
    own.reserve("acme", 1)


def test_what_was_not_used_comes_back_once():
    own, _ = quotas(tokens_per_minute=100)
    call = own.reserve("acme", 100)
    with pytest.raises(QuotaExceededError):
        own.check("acme")
    call.settle(30)
    call.settle(0)
    call.undo()
    own.reserve("acme", 70)
    with pytest.raises(QuotaExceededError):
        own.reserve("acme", 1)


def test_a_call_larger_than_the_quota_waits_for_a_full_bucket_and_leaves_a_debt():
    own, clock = quotas(tokens_per_minute=60)
    own.reserve("acme", 180).settle(180)
    with pytest.raises(QuotaExceededError) as caught:
        own.check("acme")
    assert caught.value.retry_after_s == 121
    clock.now_s += 121
    own.reserve("acme", 1)


def test_refusals_cost_nothing_and_say_when_to_come_back():
    own, clock = quotas(tokens_per_minute=600, requests_per_minute=1000)
    own.reserve("acme", 600)
    waits = set()
    for _ in range(50):
        with pytest.raises(QuotaExceededError) as caught:
            own.reserve("acme", 100)
        waits.add(caught.value.retry_after_s)
    assert waits == {10}
    clock.now_s += 10
    own.reserve("acme", 100)


@pytest.mark.parametrize("seed", range(5))
def test_no_span_of_time_holds_more_than_the_quota(seed: int):
    own, clock = quotas(tokens_per_minute=1000)
    rng = random.Random(seed)
    used: list[tuple[float, int]] = []
    running: list[tuple[float, Any, int, float]] = []
    for _ in range(4000):
        clock.now_s += rng.expovariate(5)
        for entry in [entry for entry in running if entry[0] <= clock.now_s]:
            running.remove(entry)
            _, call, tokens, began_s = entry
            call.settle(tokens)
            used.append((began_s, tokens))
        most = rng.randrange(1, 400)
        try:
            call = own.reserve("acme", most)
        except QuotaExceededError:
            continue
        running.append((clock.now_s + rng.random() * 20, call, rng.randrange(most + 1), clock.now_s))
    used.sort()
    for first in range(0, len(used), 20):
        total = 0
        for at_s, tokens in used[first:]:
            total += tokens
            assert total <= 1000 * (1 + (at_s - used[first][0]) / 60 + 20 / 60) + 1
    assert sum(tokens for _, tokens in used) > 0.5 * 1000 * (used[-1][0] - used[0][0]) / 60  # and not much less


def test_limits_may_change():
    limits: dict[str, int] = {}
    clock = Clock()
    own = Quotas(lambda tenant: Quota(**limits), clock)
    own.reserve("acme", 10**6)
    limits["tokens_per_minute"] = 10
    own.reserve("acme", 10)
    with pytest.raises(QuotaExceededError):
        own.check("acme")
    limits.clear()
    own.reserve("acme", 10**6)


def ring(quota: Quota) -> KeyRing:
    owners = {}
    for tenant, key in (("acme", "sk-acme-first"), ("birch", "sk-birch-only"), ("*", "sk-operator-key")):
        digest = key_digest(key)
        assert digest is not None
        owners[digest] = (tenant, 1)
    return KeyRing(Keys(owners=owners, quotas={"acme": quota}))


@contextmanager
def limited(catalogue: Catalogue, quota: Quota) -> Iterator[RunningServer]:
    with running(catalogue, keys=ring(quota)) as server:
        yield server


def completion(server: RunningServer, key: str, **fields: Any) -> httpx.Response:
    body = {"model": "acme/chat", "prompt": [5, 6], "max_tokens": 8, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})


def test_a_client_is_told_to_wait_and_others_are_not(catalogue: Catalogue):
    with limited(catalogue, Quota(requests_per_minute=3)) as server:
        assert [completion(server, "sk-acme-first").status_code for _ in range(5)] == [200] * 3 + [429] * 2
        refused = completion(server, "sk-acme-first")
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
        assert "3 requests a minute" in error["message"]
        assert completion(server, "sk-operator-key").status_code == 200
        assert completion(server, "sk-birch-only", model="birch/chat").status_code == 200
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-acme-first", max_retries=0)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(model="acme/chat", prompt="x")


def test_tokens_are_counted_as_they_are_used(catalogue: Catalogue):
    with limited(catalogue, Quota(tokens_per_minute=600)) as server:
        # Stopped by a string after a few tokens: what it reserved comes back.
        text = completion(server, "sk-operator-key", max_tokens=40).json()["choices"][0]["text"]
        for _ in range(5):
            short = completion(server, "sk-acme-first", max_tokens=500, stop=text[5:7])
            assert short.status_code == 200
            assert short.json()["usage"]["total_tokens"] < 50
        assert completion(server, "sk-acme-first", max_tokens=590).status_code == 429
        assert completion(server, "sk-acme-first", max_tokens=-1).status_code in (400, 429)
        assert completion(server, "sk-acme-first", max_tokens=200).status_code == 200


def test_a_client_that_leaves_gets_back_what_it_did_not_use(catalogue: Catalogue):
    with running(catalogue, keys=ring(Quota(tokens_per_minute=3000)), engine_options=("--step-s", "0.01")) as server:
        headers = {"Authorization": "Bearer sk-acme-first"}
        body = {"model": "acme/chat", "prompt": [5], "max_tokens": 2000, "stream": True}
        for _ in range(4):
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers) as answer:
                assert answer.status_code == 200
                next(answer.iter_raw())
            server.call(server.server.client.idle())
