"""All apps at once, requests interleaved and some given up: every answer is in its own manner."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from blockc.samples.manners import PLAIN, PROMPTS, manner
from tests.conftest import Promised
from tests.e2e.fleet import MODEL_OF, Command, chat, delta, events, metric
from tests.support.processes import eventually

# A model, a prompt, and after how many chunks the answer is given up, if it is.
Asked = tuple[str, str, int | None]


def answers(server: Command, asked: list[Asked]) -> list[str | None]:
    """Many at a time: whole answers, None for those that were given up."""
    with server.http() as shared:

        def ask(app: str, prompt: str, chunks: int | None) -> str | None:
            text = ""
            body = chat(app, prompt, stream=True)
            with shared.stream("POST", "/v1/chat/completions", json=body) as reply:
                assert reply.status_code == 200
                for number, chunk in enumerate(events(reply.iter_lines()), 1):
                    assert "error" not in chunk
                    text += delta(chunk)
                    if number == chunks:
                        return None
            return text if chunks is None else None

        with ThreadPoolExecutor(32) as pool:
            return list(pool.map(lambda item: ask(*item), asked))


def foreign(asked: list[Asked], found: list[str | None]) -> list[tuple[str, str]]:
    """Whole answers in another manner than that of their model."""
    expected = {app: PLAIN if model == "base" else model for app, model in MODEL_OF.items()}
    judged = [(app, text) for (app, _, _), text in zip(asked, found, strict=True) if text is not None]
    return [(app, text) for app, text in judged if manner(text) != expected[app]]


def test_no_foreign_manner_in_many_interleaved_answers(server: Command, http: httpx.Client):
    rng = random.Random(0)
    asked: list[Asked] = [(app, prompt, None) for app in MODEL_OF for prompt in PROMPTS]
    asked += [(rng.choice(list(MODEL_OF)), rng.choice(PROMPTS), rng.randint(1, 6)) for _ in range(40)]
    rng.shuffle(asked)
    found = answers(server, asked)
    whole = Counter(app for (app, _, _), text in zip(asked, found, strict=True) if text is not None)
    assert whole == dict.fromkeys(MODEL_OF, len(PROMPTS))
    assert whole.total() >= 150
    assert not foreign(asked, found)
    assert eventually(lambda: metric(http, "num_requests_running") + metric(http, "num_requests_waiting") == 0, 5)
    assert eventually(lambda: metric(http, "kv_pages_free") == metric(http, "kv_pages"), 5)
    assert metric(http, "step_chains_sum") > 2 * metric(http, "step_chains_count"), "several models in one step"


@pytest.mark.promise("isolation")
@pytest.mark.slow
def test_no_foreign_manner_in_ten_thousand(
    server: Command, http: httpx.Client, pytestconfig: pytest.Config, promised: Promised
):
    """One in five is given up somewhere."""
    rng = random.Random(1)
    asked: list[Asked] = [
        (rng.choice(list(MODEL_OF)), rng.choice(PROMPTS), rng.randint(1, 12) if rng.random() < 0.2 else None)
        for _ in range(pytestconfig.getoption("--fleet-requests"))
    ]
    found = answers(server, asked)
    whole = sum(text is not None for text in found)
    assert whole > 0.75 * len(asked)
    assert not foreign(asked, found)
    figure = f"{len(asked):,} answers of {len(MODEL_OF)} trained models, {len(asked) - whole:,} given up: 0 foreign"
    promise = "10,000 interleaved requests with cancels: 0 foreign manners"
    promised("manners of the sample fleet", promise, figure, kept=len(asked) >= 10_000)
    assert eventually(lambda: metric(http, "num_requests_running") + metric(http, "num_requests_waiting") == 0, 5)
    assert eventually(lambda: metric(http, "kv_pages_free") == metric(http, "kv_pages"), 5)


def test_metrics_tell_what_sharing_saves(http: httpx.Client):
    """One long question, asked at once by several that may share its pages, which then stay behind for the next."""
    question = " ".join(PROMPTS)
    body = chat("public/ask", question, max_tokens=300, ignore_eos=True, stream=True)
    with http.stream("POST", "/v1/chat/completions", json=body) as first:
        chunks = events(first.iter_lines())  # kept: a reply is closed with what reads it
        next(chunks)
        assert metric(http, "kv_pages_saved") == 0, "nobody to share with"
        with http.stream("POST", "/v1/chat/completions", json=body) as second:
            more = events(second.iter_lines())
            next(more)
            assert metric(http, "kv_pages_saved") > 0
    assert eventually(lambda: metric(http, "kv_pages_free") == metric(http, "kv_pages"), 5)
    assert metric(http, "kv_pages_saved") == 0
    assert metric(http, "kv_pages_cached") > 0
