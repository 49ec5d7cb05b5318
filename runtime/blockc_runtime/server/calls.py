"""Answers one HTTP call: waits for its tokens and sends them, at once or as they come.

In: a `Generation` and the `Format` of its route. Out: the HTTP response (see `response.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from blockc_runtime.request import EndEvent, TokenLogprob, TokensEvent
from blockc_runtime.server import sse
from blockc_runtime.server.arrivals import Arrival, Call
from blockc_runtime.server.auth import Caller
from blockc_runtime.server.catalogue import ServedApp
from blockc_runtime.server.choice import Choice
from blockc_runtime.server.classify import ScoresResponse
from blockc_runtime.server.direct import Direct, direct
from blockc_runtime.server.embeddings import EmbeddingsResponse, waves
from blockc_runtime.server.engine_client import EngineClient, PlanChangedError, QueueFullError
from blockc_runtime.server.engine_link import EngineUnavailableError
from blockc_runtime.server.errors import ApiError, unavailable
from blockc_runtime.server.generation import Generation, Submission
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.server.output import Delta, Output
from blockc_runtime.server.quotas import QuotaExceededError, Quotas, Reservation
from blockc_runtime.server.response import CallResponse, raise_if_failed, send_json
from blockc_runtime.server.schemas import ChatBody, CompletionBody, EmbeddingBody, StreamOptions


class Format(Protocol):
    """How a route words its answers."""

    def opening(self, index: int) -> bytes:
        """Return the events before the first token of a choice."""

    def chunk(self, index: int, delta: Delta) -> bytes:
        """Return the event of a delta; nothing if there is nothing to show."""

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """Return the event with the token counts."""

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> bytes:
        """Return the body of an answer given at once."""


class Calls:
    """Takes calls on for one engine."""

    def __init__(self, client: EngineClient, metrics: Metrics, quotas: Quotas) -> None:
        self._client = client
        self._metrics = metrics
        self._quotas = quotas

    def check_room(self, app: ServedApp, caller: Caller) -> None:
        """Raise 429 or 503 before anything is tokenised for a call that would get it anyway."""
        with self._refusals():
            self._client.check_room(app.tenant, 1)
            self._quotas.check(caller.tenant)

    async def on_one_plan(self, attempt: Callable[[], Awaitable[Response]]) -> Response:
        """Find the app, make its requests and submit them, again if the plan has changed in between."""
        while True:
            with self._refusals():
                await self._client.admitted()
            with suppress(PlanChangedError):
                return await attempt()

    def answer(
        self, generation: Generation, answer_format: Format, body: CompletionBody | ChatBody, caller: Caller
    ) -> TextResponse:
        """Submit a call and return the response that will answer it. Raises 429 or 503."""
        call, reservation = self._submitted(generation, caller)
        return TextResponse(
            self._client,
            call,
            generation,
            reservation,
            answer_format,
            stream=body.stream,
            options=body.stream_options,
        )

    def classify(self, submission: Submission, caller: Caller) -> ScoresResponse:
        """Submit texts for their scores and return the response that will answer. Raises 429 or 503."""
        call, reservation = self._submitted(submission, caller)
        return ScoresResponse(self._client, call, submission, reservation)

    def embed(self, submission: Submission, body: EmbeddingBody, caller: Caller) -> EmbeddingsResponse:
        """Submit texts for their embeddings and return the response that will answer. Raises 429 or 503."""
        first, *later = waves(submission)
        call, reservation = self._submitted(first, caller, most_tokens=submission.most_tokens)
        kept = ExitStack()  # from now on: the first wave may end before the answer begins
        if later:
            kept.enter_context(self._client.keeping(submission.app.epoch))
        more = partial(self._submit, is_more=True)
        return EmbeddingsResponse(self._client, call, submission, reservation, body, later, more, kept)

    def _submitted(
        self, submission: Submission, caller: Caller, most_tokens: int | None = None
    ) -> tuple[Call, Reservation]:
        """``most_tokens``: of the whole call, where this is only a part of it."""
        with self._refusals():
            reservation = self._quotas.reserve(
                caller.tenant, submission.most_tokens if most_tokens is None else most_tokens
            )
            try:
                return self._submit(submission), reservation
            except BaseException:
                reservation.undo()
                raise

    def _submit(self, submission: Submission, *, is_more: bool = False) -> Call:
        app, metrics = submission.app, self._metrics.app(submission.app.tenant, submission.app.app)
        with self._refusals():
            return self._client.submit(submission.requests, tenant=app.tenant, metrics=metrics, is_more=is_more)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except QueueFullError:
            raise ApiError(
                429, "too many requests are waiting", code="queue_full", headers={"Retry-After": "1"}
            ) from None
        except QuotaExceededError as error:
            raise ApiError(
                429,
                f"this key's quota is {error}; try again in {error.retry_after_s} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(error.retry_after_s)},
            ) from None
        except EngineUnavailableError:
            reason = "the server is ending" if self._client.draining else "there is no engine"
            raise unavailable(reason) from None


class TextResponse(CallResponse):
    """The response to a call that generates text."""

    def __init__(
        self,
        client: EngineClient,
        call: Call,
        generation: Generation,
        reservation: Reservation,
        answer_format: Format,
        *,
        stream: bool,
        options: StreamOptions,
    ) -> None:
        super().__init__(client, call, generation, reservation)
        self._format = answer_format
        self._as_stream = stream
        self._options = options
        self._generation = generation
        self._direct: Direct | None = None
        self._scored: dict[int, dict[int, TokenLogprob]] = {}  # by request and place in its prompt
        vocabulary = generation.app.text.vocabulary
        self._outputs = [Output(vocabulary, generation.options) for _ in generation.requests]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        self._direct = direct(scope)
        await super().__call__(scope, receive, send)

    async def _answer(self, send: Send, arrivals: list[Arrival]) -> None:
        await (self._stream(send, arrivals) if self._as_stream else self._whole(send, arrivals))

    async def _stream(self, send: Send, arrivals: list[Arrival]) -> None:
        await send(sse.START)
        data = b"".join(self._format.opening(index) for index in range(len(self._outputs)))
        try:
            while arrivals:
                if data := self._events(arrivals, data):
                    await send(sse.body(data, more=True))
                data = b""
                arrivals = await self._call.arrived(self._write)
            if self._options.include_usage:
                data = self._format.usage_chunk(self._usage())
        except ApiError as error:
            data = sse.event(error.body().decode())
        await send(sse.body(data + sse.DONE, more=False))

    async def _whole(self, send: Send, arrivals: list[Arrival]) -> None:
        choices = [Choice() for _ in self._outputs]

        def take(arrivals: list[Arrival]) -> bool:
            for arrival in arrivals:
                if delta := self._delta(arrival):
                    choices[self._index[arrival.request]].add(delta)
            return True

        while arrivals:
            take(arrivals)
            arrivals = await self._call.arrived(take)
        if not all(output.finished for output in self._outputs):
            return  # the client left; nobody reads an answer
        shown = self._generation.shown(choices)
        for index, choice in enumerate(shown):
            scored = self._scored.get(self._generation.request_of(index), {})
            choice.prompt_logprobs = [scored[place] for place in sorted(scored)]
        data = self._format.whole(shown, self._usage())
        await send_json(send, data)

    def _write(self, arrivals: list[Arrival]) -> bool:
        """Write tokens at once, if the client has taken all before them; all else takes its turn in `_stream`."""
        if self._direct is None or not self._direct.is_clear:
            return False
        self._direct.write(self._events(arrivals))
        return True

    def _events(self, arrivals: list[Arrival], opening: bytes = b"") -> bytes:
        data = opening + b"".join([self._event(arrival) for arrival in arrivals])
        return sse.with_usage(data, self._usage()) if data and self._options.continuous_usage_stats else data

    def _event(self, arrival: Arrival) -> bytes:
        delta = self._delta(arrival)
        return b"" if delta is None else self._format.chunk(self._index[arrival.request], delta)

    def _delta(self, arrival: Arrival) -> Delta | None:
        """Take in what has arrived for one request; None if that request has ended for us."""
        output = self._outputs[self._index[arrival.request]]
        if output.finished:
            return None
        if isinstance(arrival, TokensEvent):
            if arrival.prompt_logprobs:
                scored = self._scored.setdefault(self._index[arrival.request], {})
                scored.update(enumerate(arrival.prompt_logprobs, arrival.prompt_start))
            if not arrival.tokens:
                return None
            delta = output.feed(arrival)
            if output.stopped:
                self._client.finish(arrival.request)
            return delta
        raise_if_failed(arrival)
        assert isinstance(arrival, EndEvent)
        return output.end(arrival)

    def _completion_tokens(self) -> int:
        return sum(output.token_count for output in self._outputs)

    def _usage(self) -> dict[str, Any]:
        prompt = self._generation.prompt_tokens
        completion = self._completion_tokens()
        cached = sum(output.cached_tokens for output in self._outputs[:: self._generation.tries])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
