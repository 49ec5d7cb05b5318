"""``/v1/embeddings``: one vector for each text, worded as OpenAI words them.

In: a submission, and how its vectors are to be shown. Out: the HTTP response. Texts of a long call go to the engine in
waves, so that a tenant's queue holds no more than one of them for each call.
"""

from __future__ import annotations

import asyncio
import base64
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from sys import byteorder

from starlette.types import Receive, Scope, Send

from blockc_runtime.request import EndEvent
from blockc_runtime.server.arrivals import Arrival, Call
from blockc_runtime.server.catalogue import ServedApp
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.errors import ApiError, invalid
from blockc_runtime.server.generation import Submission
from blockc_runtime.server.quotas import Reservation
from blockc_runtime.server.response import CallResponse, send_json
from blockc_runtime.server.schemas import EmbeddingBody
from blockc_runtime.server.sse import to_json

WAVE = 64  # texts


def waves(submission: Submission) -> Iterator[Submission]:
    """The texts of a call, a few at a time."""
    for first in range(0, len(submission.requests), WAVE):
        yield replace(submission, requests=submission.requests[first : first + WAVE])


def check_dimensions(body: EmbeddingBody, app: ServedApp) -> None:
    """Raise 400 for a length at which the model's vectors mean nothing."""
    wanted, own = body.dimensions, app.embedding
    assert own is not None, "the route is for models that have one"
    if wanted is None or wanted == own.width:
        return
    if own.widths is None and wanted < own.width:
        return
    if own.widths is not None and wanted in own.widths:
        return
    if own.widths == ():
        why = f"this model's embeddings have {own.width} values, and it was not trained to have them cut (Matryoshka)"
    else:
        fit = f"1 to {own.width}" if own.widths is None else ", ".join(map(str, sorted({*own.widths, own.width})))
        why = f"this model's embeddings may have {fit} values"
    raise invalid(f"`dimensions` is {wanted}: {why}", param="dimensions")


class EmbeddingsResponse(CallResponse):
    """The response to a call for embeddings, given when all texts have theirs.

    ``submit``: takes on one of the waves to come; ``kept``: what keeps their plan until the answer has been given.
    """

    def __init__(
        self,
        client: EngineClient,
        call: Call,
        submission: Submission,
        reservation: Reservation,
        body: EmbeddingBody,
        later: Sequence[Submission],
        submit: Callable[[Submission], Call],
        kept: AbstractContextManager[object],
    ) -> None:
        super().__init__(client, call, submission, reservation)
        self._body = body
        self._later = later
        self._submit = submit
        self._kept = kept

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._kept:
            await super().__call__(scope, receive, send)

    async def _answer(self, send: Send, arrivals: list[Arrival]) -> None:
        ends = await self._ends(arrivals)
        for wave in self._later:
            if self.client_left:
                break
            self._call = self._submit(wave)
            ends |= await self._ends(await self._call.arrived())
        if len(ends) == len(self._index):  # else the client left; nobody reads an answer
            await send_json(send, await self._text(ends))

    async def _text(self, ends: dict[int, EndEvent]) -> bytes:
        entries = []
        for index in range(len(ends)):
            entries.append(to_json({"object": "embedding", "index": index, "embedding": self._vector(ends[index])}))
            await asyncio.sleep(0)  # thousands of numbers each: others are not to wait for all of them
        prompt = self._submission.prompt_tokens
        usage = {"prompt_tokens": prompt, "total_tokens": prompt}
        rest = to_json({"model": self._submission.app.model, "usage": usage})
        return f'{{"object":"list","data":[{",".join(entries)}],{rest[1:]}'.encode()

    def _vector(self, end: EndEvent) -> list[float] | str:
        own = self._submission.app.embedding
        assert own is not None, "the route is for models that have one"
        if len(end.scores) != own.width:
            raise ApiError(500, "the engine failed: it gave no embedding")
        values = end.scores
        if self._body.dimensions is not None and self._body.dimensions < own.width:
            values = shortened(values, self._body.dimensions, is_normalized=own.is_normalized)
        return list(values) if self._body.encoding_format == "float" else as_base64(values)


def shortened(values: Sequence[float], width: int, *, is_normalized: bool) -> tuple[float, ...]:
    """The beginning of a vector; of length 1 again where the whole one was, if it can be."""
    kept = tuple(values[:width])
    length = math.sqrt(sum(value * value for value in kept)) if is_normalized else 1.0
    return tuple(value / length for value in kept) if length > 0 else kept


def as_base64(values: Sequence[float]) -> str:
    """As OpenAI's clients ask for vectors: float32, the lowest byte first."""
    numbers = array("f", values)
    if byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()
