"""Tokens that are written where they arrive, past the layers of the app."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable

import pytest

from blockc_runtime.request import EndEvent, TokensEvent
from blockc_runtime.server.arrivals import Arrival, Call
from blockc_runtime.server.direct import Direct
from tests.runtime.server.running import RunningServer, raw
from tests.runtime.server.test_completions import PROMPT, expected_text


def tokens(*ids: int) -> TokensEvent:
    return TokensEvent(request="r", tokens=ids, logprobs=())


async def reading(call: Call, take: Callable[[list[Arrival]], bool]) -> asyncio.Task[list[Arrival]]:
    """A reader that waits."""
    task = asyncio.create_task(call.arrived(take))
    await asyncio.sleep(0)
    return task


def test_what_is_taken_where_it_arrives_wakes_nobody():
    async def play() -> None:
        call, taken = Call(["r"], 0.0), list[Arrival]()
        reader = await reading(call, lambda arrivals: not taken.extend(arrivals))
        for number in range(3):
            call.add(tokens(number))
            call.offer()
        await asyncio.sleep(0)
        assert (taken, reader.done()) == ([tokens(0), tokens(1), tokens(2)], False)
        call.put(end := EndEvent(request="r", reason="stop", message="", cached_tokens=0))
        assert await reader == [end]

    asyncio.run(play())


def test_what_is_not_taken_is_read_in_its_order_and_nothing_overtakes_it():
    async def play() -> None:
        call = Call(["r"], 0.0)
        offered = list[int]()
        reader = await reading(call, lambda arrivals: bool(offered.append(len(arrivals))))
        for number in range(3):
            call.add(tokens(number))
            call.offer()
        assert offered == [1]  # the reader has been woken: the rest is its to read
        assert await reader == [tokens(0), tokens(1), tokens(2)]

    asyncio.run(play())


def test_a_reader_whose_call_ends_by_what_it_took_goes_on():
    async def play() -> None:
        call = Call(["r"], 0.0)
        reader = await reading(call, lambda arrivals: not call.unfinished.clear())
        call.add(tokens(1))
        call.offer()
        assert await reader == []

    asyncio.run(play())


def test_what_goes_wrong_is_the_readers():
    def fail(arrivals: list[Arrival]) -> bool:
        raise ValueError("of this call alone")

    async def play() -> None:
        call = Call(["r"], 0.0)
        reader = await reading(call, fail)
        call.add(tokens(1))
        call.offer()
        with pytest.raises(ValueError, match="of this call alone"):
            await reader

    asyncio.run(play())


class Transport(asyncio.Transport):
    """Holds back what is written while it is ``full``."""

    def __init__(self) -> None:
        self.written, self.full, self.closing = b"", False, False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return int(self.full)

    def is_closing(self) -> bool:
        return self.closing


def test_a_chunk_is_http_and_none_is_empty():
    transport = Transport()
    for data in (b"data: 1\n\n", b"", b"x" * 300):
        Direct(transport).write(data)
    assert transport.written == b"9\r\ndata: 1\n\n\r\n" + b"12c\r\n" + b"x" * 300 + b"\r\n"


@pytest.mark.parametrize("state", ["full", "closing"])
def test_nothing_is_written_past_a_client_that_is_late_or_gone(state: str):
    transport = Transport()
    assert Direct(transport).is_clear
    setattr(transport, state, True)
    assert not Direct(transport).is_clear


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stream_is_the_same_in_chunks_and_without(server: RunningServer, version: str):
    body = json.dumps({"model": "acme/chat", "prompt": PROMPT, "max_tokens": 300, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with raw(server.url) as connection:
        connection.sendall(head.encode() + body)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        events = answer.read().split(b"\n\n")
    assert answer.getheader("transfer-encoding") == ("chunked" if version == "1.1" else None)
    assert events[-2:] == [b"data: [DONE]", b""]
    choices = [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events[:-2]]
    assert "".join(choice["text"] for choice in choices) == expected_text(300)
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
