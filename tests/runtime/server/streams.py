"""A client that costs little: streams of `blockc serve` with the null executor, read by one connection a thread."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from blockc_runtime.executor.null import next_token
from tests.runtime.server import world

END = 1  # the end-of-text token
MODELS = tuple(f"{tenant}/{app}" for tenant, app in world.APPS)


@dataclass(frozen=True)
class Answer:
    """``whole``: it was read to its end. ``error``: of a refusal, or of a stream that ended with one."""

    tokens: list[int]
    whole: bool
    error: dict[str, Any] | None = None


@cache
def alone(model: str, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """What the null model answers, whoever else is there."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < count:
        tokens.append(next_token(MODELS.index(model), tokens, world.vocab_size()))
        if tokens[-1] == END:
            break
    return tuple(tokens[len(prompt) :])


class Connection:
    """One connection, for one request after the other."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._http = http.client.HTTPConnection(self._host, timeout=60)

    def ask(self, model: str, prompt: tuple[int, ...], count: int, *, leave_after: int | None = None) -> Answer:
        """Stream an answer; with ``leave_after`` hang up once so many tokens have come."""
        tokens: list[int] = []
        for chunk in self.chunks(model, prompt, count):
            if "error" in chunk:
                return Answer(tokens=tokens, whole=False, error=chunk["error"])
            tokens += chunk["choices"][0].get("token_ids", [])
            if leave_after is not None and len(tokens) >= leave_after:
                self.close()
                return Answer(tokens=tokens, whole=False)
        return Answer(tokens=tokens, whole=True)

    def chunks(self, model: str, prompt: tuple[int, ...], count: int, **fields: Any) -> Iterator[dict[str, Any]]:
        """The events of a stream; a refusal is one."""
        body = {"model": model, "prompt": prompt, "max_tokens": count, "stream": True, "return_token_ids": True}
        self._http.request("POST", "/v1/completions", json.dumps({**body, **fields}))
        answer = self._http.getresponse()
        if answer.status != 200:
            yield json.loads(answer.read())
            return
        for line in answer:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])

    def close(self) -> None:
        """Hang up. The next request opens it again."""
        self._http.close()
