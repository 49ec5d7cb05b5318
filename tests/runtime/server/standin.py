"""An engine whose model is a formula: the engine's own loop around a first-come scheduler.

The token at position p of chain c is a function of both, so that an engine started anew goes on with
the same text. Run as a program, like the engine proper.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from blockc_runtime.channel import Channel, end_with
from blockc_runtime.engine import Engine, serve
from blockc_runtime.epoch import Epoch
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.request import EndEvent, Event, Request, TokenLogprob, TokensEvent
from blockc_runtime.scheduler import Gauges
from blockc_runtime.scheduler.sessions import Sessions
from blockc_runtime.step import Launch, Row, RowResult, SegmentTurn, Step, StepResult
from blockc_runtime.wire.frames import decode_step, decode_step_result, encode_step, encode_step_result
from blockc_runtime.wire.messages import Ready

PAGE_TOKENS = 16
PAGES = 4096
FIRST_TOKEN, TOKENS = 4, 256  # the byte alphabet of the test tokenizer


def token_at(chain: int, position: int) -> int:
    return FIRST_TOKEN + (position * 7919 + chain * 104729 + position**2 * 31) % TOKENS


class FormulaExecutor:
    """Optionally slow, and through the wire's encoding both ways if ``encoded``."""

    def __init__(self, *, step_s: float = 0.0, encoded: bool = True) -> None:
        self._step_s = step_s
        self._encoded = encoded
        self._steps: list[Step] = []

    def prefetch(self, chain: int) -> None:
        raise AssertionError("nothing is limited here")

    def prefetched(self) -> Sequence[tuple[int, str | None]]:
        return ()

    def bring(self, turn: SegmentTurn) -> None:
        raise AssertionError("nothing is limited here")

    def brought(self) -> Sequence[tuple[int, str | None]]:
        return ()

    def index(self, chain: int) -> bool:
        return True

    def submit(self, step: Step) -> None:
        self._steps.append(decode_step(encode_step(step)) if self._encoded else step)

    def collect(self) -> StepResult:
        step = self._steps.pop(0)
        if self._step_s:
            time.sleep(self._step_s)
        result = StepResult(step=step.id, rows=tuple(_result(row) for row in step.rows))
        return decode_step_result(encode_step_result(result)) if self._encoded else result

    def close(self) -> None:
        self._steps.clear()


def _result(row: Row) -> RowResult:
    end = row.start + len(row.tokens)
    tokens = tuple(token_at(row.chain, end + i) for i in range(row.samples))
    logprobs: tuple[TokenLogprob, ...] = ()
    if row.sampling is not None and row.sampling.logprobs is not None:
        top = row.sampling.logprobs
        logprobs = tuple(TokenLogprob(logprob=-0.5, top=tuple((t + i, -0.5 - i) for i in range(top))) for t in tokens)
    return RowResult(tokens=tokens, logprobs=logprobs)


@dataclass(slots=True)
class _Running:
    request: Request
    length: int
    emitted: int
    pages: int


class FirstComeScheduler:
    """Everything unfinished gets a row in every step, up to 64; pages are only counted."""

    is_reading = False
    service = ()

    def take_wanted(self) -> Sequence[int]:
        return ()

    def give_way(self) -> None:
        raise AssertionError("there is one plan")

    def take_turns(self) -> Sequence[SegmentTurn]:
        return ()

    def brought(self, segment: int, problem: str | None) -> Sequence[Event]:
        raise AssertionError("nothing is limited here")

    def arrived(self, chain: int, problem: str | None) -> Sequence[Event]:
        raise AssertionError("nothing is limited here")

    def __init__(self) -> None:
        self.sessions = Sessions()
        self._running: dict[str, _Running] = {}
        self._steps = 0
        self._free = PAGES

    def admit(self, request: Request, now_s: float) -> Sequence[Event]:
        pages = -(-(len(request.prompt) + request.max_tokens) // PAGE_TOKENS)
        self._free -= pages
        self._running[request.id] = _Running(request, 0, request.emitted, pages)
        return ()

    def schedule(self, now_s: float) -> Step | None:
        rows = tuple(self._row(running) for running in list(self._running.values())[:64])
        if not rows:
            return None
        self._steps += 1
        launch = Launch(instance=0, segment=0, micro_batch=0, rows=tuple(range(len(rows))))
        return Step(id=self._steps, epoch=0, rows=rows, launches=(launch,))

    def _row(self, running: _Running) -> Row:
        request = running.request
        fresh = running.length == 0
        tokens = request.prompt if fresh else (token_at(request.chain, running.length),)
        return Row(
            request=request.id,
            chain=request.chain,
            tokens=tokens,
            start=running.length,
            pages=(),
            samples=1,
            sampling=request.sampling,
            output_index=running.emitted,
        )

    def complete(self, step: Step, result: StepResult, now_s: float) -> Sequence[Event]:
        events: list[Event] = []
        for row, yielded in zip(step.rows, result.rows, strict=True):
            running = self._running.get(row.request)
            if running is None:
                continue
            running.length += len(row.tokens)
            running.emitted += 1
            events.append(TokensEvent(request=row.request, tokens=yielded.tokens, logprobs=yielded.logprobs))
            if yielded.tokens[-1] in running.request.stop_token_ids:
                events.append(self._ended(row.request, "stop"))
            elif running.emitted >= running.request.max_tokens:
                events.append(self._ended(row.request, "length"))
        return events

    def cancel(self, request: str, *, is_done: bool = False) -> Sequence[Event]:
        del is_done
        return (self._ended(request, "cancelled"),) if request in self._running else ()

    def _ended(self, request: str, reason: str) -> EndEvent:
        self._free += self._running.pop(request).pages
        return EndEvent(request=request, reason=reason, message="", cached_tokens=0)  # type: ignore[arg-type]

    def gauges(self) -> Gauges:
        pages = PageUsage(total=PAGES, free=self._free, idle=0, held=PAGES - self._free)
        return Gauges(
            running=len(self._running), waiting=0, steps_in_flight=0, steps=self._steps,
            pages=(pages,),
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--exit-at-start", type=int)
    options = parser.parse_args()
    print("stand-in engine starts", flush=True)
    if options.exit_at_start is not None:
        return options.exit_at_start
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(options.socket)
        end_with(connection)
        channel = Channel(connection)
        scheduler = FirstComeScheduler()
        executor = FormulaExecutor(step_s=options.step_s, encoded=False)
        engine = Engine(channel=channel, first=Epoch(number=options.epoch, scheduler=scheduler, executor=executor))
        ready = Ready(plan_digest=options.digest, capabilities=())
        return serve(channel, lambda: (engine, ready))


if __name__ == "__main__":
    sys.exit(main())
