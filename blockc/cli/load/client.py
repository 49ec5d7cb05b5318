"""Ask a server as OpenAI's clients do, with streams, and note when what came.

In: a server's address and arrivals. Out: one :class:`Answer` for each, in their order. Invariant: times count from when
a request was due, not from when there was room to send it: a server that falls behind does not look fast.
"""

from __future__ import annotations

import http.client
import json
import random
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from blockc.cli.load.arrivals import Arrival
from blockc.diag import refuse

_PATIENCE_S = 600.0
_IDS = (3, 250)  # token ids that every vocabulary has, and that none gives a meaning of its own
_MOST_BYTES = 256 << 20  # of a plan, which is the longest that is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. ``error``: what went wrong, None for an answer. Times in seconds."""

    app: str
    error: str | None
    prompt_tokens: int
    output_tokens: int
    ttft_s: float
    e2e_s: float
    ended_s: float  # after the beginning of the run

    @property
    def tpot_s(self) -> float | None:
        """Seconds for each token after the first."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


def _address(url: str) -> SplitResult | None:
    """Its parts; None for what is no address."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port beyond all
        return None
    return parts if is_one else None


class Target:
    """A server. ``key`` is sent and shown nowhere."""

    def __init__(self, url: str, key: str | None) -> None:
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            refuse("BC109", "the key has a character that no key has", "BLOCKC_KEY=... without blanks and line ends")
        parts = _address(url)
        if parts is None:
            refuse("BC109", f"`{url[:200]}` is not the address of a server", "write `http://127.0.0.1:8000`")
        self._parts: SplitResult = parts
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def exchange(self, method: str, path: str, data: bytes | None = None) -> tuple[int, bytes]:
        """One request; the status and the body of the answer. Raises `DiagnosticError` (BC003)."""
        try:
            connection = self._connection()
            try:
                connection.request(method, self._path(path), data, self._headers)
                answer = connection.getresponse()
                return answer.status, answer.read(_MOST_BYTES)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            refuse("BC003", f"cannot reach {self._parts.netloc}: {error}", "start it with `blockc serve PLAN`")

    def models(self) -> dict[str, int]:
        """The models that the key may use, with their longest sequences. Raises `DiagnosticError` (BC003)."""
        status, body = self.exchange("GET", "/v1/models")
        if status != 200:
            refuse("BC003", f"the server answered {status}: {message_of(body)}", _KEY)
        try:
            data = json.loads(body)["data"]
            return {str(entry["id"]): int(entry.get("max_model_len") or 2048) for entry in data}
        except (ValueError, KeyError, TypeError):
            refuse("BC003", f"{self._parts.netloc} is no server of OpenAI's form", "name another")

    def ask(self, arrival: Arrival, began_s: float, seed: int) -> Answer:
        """One request; what goes wrong is part of the answer."""
        due_s = began_s + arrival.at_s
        first_s: float | None = None
        prompt_tokens = output_tokens = 0
        error: str | None = None
        try:
            for event in self._events(arrival, seed):
                if event.get("error"):
                    error = str(event["error"])[:200]
                    break
                usage = event.get("usage")
                if usage:
                    prompt_tokens, output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
                if event.get("choices") and first_s is None:
                    first_s = time.perf_counter()
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as problem:
            error = f"{type(problem).__name__}: {problem}"[:200]
        now_s = time.perf_counter()
        if error is None and (first_s is None or not output_tokens):
            error = "the answer broke off"
        return Answer(
            app=arrival.app,
            error=error,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            ttft_s=(first_s or now_s) - due_s,
            e2e_s=now_s - due_s,
            ended_s=now_s - began_s,
        )

    def _events(self, arrival: Arrival, seed: int) -> Iterator[dict[str, Any]]:
        chance = random.Random(f"{seed} {arrival.number}")  # noqa: S311 - prompts that no cache has seen
        body = {
            "model": arrival.app,
            "prompt": [chance.randrange(*_IDS) for _ in range(arrival.prompt_tokens)],
            "max_tokens": arrival.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = self._connection()
        try:
            connection.request("POST", self._path("/v1/completions"), json.dumps(body), self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise OSError(f"{answer.status} {message_of(answer.read(_MOST_BYTES))}")
            for line in answer:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[6:])
        finally:
            connection.close()

    def _path(self, path: str) -> str:
        return self._parts.path.removesuffix("/").removesuffix("/v1") + path

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=_PATIENCE_S, context=context)
        return http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)


def send(
    target: Target, arrivals: Sequence[Arrival], *, concurrency: int, seed: int, done: Callable[[Answer], None]
) -> list[Answer]:
    """Send each when it is due, at most ``concurrency`` at a time. ``done`` is told of every answer as it ends."""

    def one(arrival: Arrival) -> Answer:
        answer = target.ask(arrival, began_s, seed)
        done(answer)
        return answer

    with ThreadPoolExecutor(concurrency, thread_name_prefix="load") as pool:
        began_s = time.perf_counter()
        waiting = []
        for arrival in arrivals:
            time.sleep(max(0.0, began_s + arrival.at_s - time.perf_counter()))
            waiting.append(pool.submit(one, arrival))
        return [future.result() for future in waiting]


_KEY = "the key is taken from the environment: BLOCKC_KEY=... blockc bench URL"


def message_of(body: bytes) -> str:
    """The server's own words."""
    try:
        return str(json.loads(body)["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return "no message"
