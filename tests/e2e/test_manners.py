"""All apps at once, requests interleaved and some given up: every answer is in its own manner."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from blockc.samples.manners import PLAIN, PROMPTS, manner
from tests.e2e.fleet import MODEL_OF, Command, chat, delta, events, metric
from tests.support.processes import eventually


def test_no_foreign_manner_in_many_interleaved_answers(server: Command, http: httpx.Client):
    rng = random.Random(0)
    asked = [(app, prompt, None) for app in MODEL_OF for prompt in PROMPTS]
    asked += [(rng.choice(list(MODEL_OF)), rng.choice(PROMPTS), rng.randint(1, 6)) for _ in range(40)]
    rng.shuffle(asked)
    with server.http() as shared:

        def ask(app: str, prompt: str, chunks: int | None) -> str | None:
            """The whole answer; None for one that was left after so many chunks."""
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
            answers = list(pool.map(lambda item: ask(*item), asked))
    judged = [(app, text) for (app, _, _), text in zip(asked, answers, strict=True) if text is not None]
    expected = {app: PLAIN if model == "base" else model for app, model in MODEL_OF.items()}
    foreign = [(app, text) for app, text in judged if manner(text) != expected[app]]
    assert len(judged) >= 150
    assert Counter(app for app, _ in judged) == dict.fromkeys(MODEL_OF, len(PROMPTS))
    assert not foreign
    assert eventually(lambda: metric(http, "num_requests_running") + metric(http, "num_requests_waiting") == 0, 5)
    assert eventually(lambda: metric(http, "kv_pages_free") == metric(http, "kv_pages"), 5)
    assert metric(http, "step_chains_sum") > 2 * metric(http, "step_chains_count"), "several models in one step"
