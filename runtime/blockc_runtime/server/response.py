"""The response to an HTTP call that has been submitted to the engine, whatever the engine answers it with.

In: a `Submission`. Out: the HTTP response, in the words of its route. Invariant: however a call ends (its client left,
a stop string came, the engine failed), nothing of it goes on working.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from blockc_runtime.request import EndEvent
from blockc_runtime.server import sse
from blockc_runtime.server.access import Work, note, note_work
from blockc_runtime.server.arrivals import Arrival, Call, Unavailable
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.errors import ApiError, unavailable
from blockc_runtime.server.generation import Submission
from blockc_runtime.server.quotas import Reservation


class CallResponse(Response, ABC):
    """A call in progress."""

    def __init__(
        self, client: EngineClient, call: Call, submission: Submission, reservation: Reservation | None = None
    ) -> None:
        super().__init__()
        self._client = client
        self._call = call
        self._submission = submission
        self._reservation = reservation or Reservation()
        self.client_left = False
        self._index = {request.id: index for index, request in enumerate(submission.requests)}

    @abstractmethod
    async def _answer(self, send: Send, arrivals: list[Arrival]) -> None:
        """Send the answer. ``arrivals``: the first that came, none of them a failure."""

    def _completion_tokens(self) -> int:
        """Tokens of the answer so far."""
        return 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and stop everything if the client leaves."""
        first = self._call  # others may follow it
        watch = asyncio.create_task(self._leave_with_client(receive))
        try:
            # The first arrival decides the status: an engine that fails is a 5xx, not a stream.
            arrivals = await self._call.arrived()
            for arrival in arrivals:
                raise_if_failed(arrival)
            await self._answer(send, arrivals)
        except ApiError as error:
            await error.response()(scope, receive, send)
        finally:
            self._client.cancel(self._call)
            watch.cancel()
            prompt, completion = self._submission.prompt_tokens, self._completion_tokens()
            self._reservation.settle(prompt + completion)
            note(scope, id=self._submission.id, prompt_tokens=prompt, completion_tokens=completion)
            note_work(
                scope,
                Work(
                    submitted_s=first.submitted_s,
                    started_s=first.started_s,
                    first_token_s=first.first_token_s,
                    ended_s=time.monotonic(),
                    segments=self._submission.app.segments,
                ),
            )

    async def _ends(self, arrivals: list[Arrival]) -> dict[int, EndEvent]:
        """How each request has ended, of a call that yields no text; fewer than there are if the client left."""
        ends: dict[int, EndEvent] = {}
        while arrivals:
            for arrival in arrivals:
                raise_if_failed(arrival)
                if isinstance(arrival, EndEvent):
                    ends[self._index[arrival.request]] = arrival
            arrivals = await self._call.arrived()
        return ends

    async def _leave_with_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.client_left = True
        self._client.cancel(self._call)


async def send_json(send: Send, data: bytes) -> None:
    """Send a whole JSON document with status 200."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(sse.body(data, more=False))


def raise_if_failed(arrival: Arrival) -> None:
    """Raise the error that a client is told of, if this is one."""
    if isinstance(arrival, Unavailable):
        raise unavailable(arrival.message)
    if isinstance(arrival, EndEvent) and arrival.reason in ("error", "cancelled"):
        raise ApiError(500, f"the engine failed: {_public(arrival.message)}")


def _public(message: str) -> str:
    """Return the first line of an engine's message without anything that looks like a path."""
    line = message.strip().partition("\n")[0][:300]
    return " ".join("..." if "/" in word else word for word in line.split()) or "no reason given"
