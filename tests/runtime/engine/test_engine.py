"""The engine's loop over a real socket, driven frame by frame."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from blockc.diag import DiagnosticError, Diagnostics
from blockc.plan import ExecutionPlan, write_plan
from blockc_runtime.channel import Channel, ServerGoneError
from blockc_runtime.engine import Engine, load, serve
from blockc_runtime.epoch import Epoch
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.request import Request, Sampling, Steering, TokensEvent
from blockc_runtime.step import Fault, Launched, RowResult, Step, StepResult
from blockc_runtime.wire.frames import FrameBuffer, encode
from blockc_runtime.wire.messages import (
    Cancel,
    Drain,
    End,
    EngineError,
    Message,
    Ready,
    Shutdown,
    Stats,
    StatsQuery,
    Submit,
    Tokens,
)
from tests.plan.fleet import fleet_plan
from tests.runtime.server.standin import (
    PAGES,
    FirstComeScheduler,
    FormulaExecutor,
    token_at,
)

READY = Ready(plan_digest="d", capabilities=())


class Peer:
    """The server's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        self.connection = connection
        self._frames = FrameBuffer()
        self._messages: list[Message] = []

    def send(self, *messages: Message) -> None:
        self.connection.sendall(b"".join(map(encode, messages)))

    def next(self) -> Message:
        while not self._messages:
            data = self.connection.recv(65536)
            if not data:
                raise EOFError
            self._messages += self._frames.feed(data)
        return self._messages.pop(0)

    def until_ends(self, *requests: str) -> tuple[dict[str, list[int]], dict[str, str], int]:
        """Tokens and reasons of these requests, and how many frames of tokens came."""
        tokens: dict[str, list[int]] = {request: [] for request in requests}
        reasons: dict[str, str] = {}
        frames = 0
        while len(reasons) < len(requests):
            match self.next():
                case Tokens(events=events):
                    frames += 1
                    for event in events:
                        tokens[event.request] += event.tokens
                case End(events=events):
                    for end in events:
                        assert end.request not in reasons
                        reasons[end.request] = end.reason
        return tokens, reasons, frames


class Running:
    """An engine in a thread."""

    def __init__(self, executor: FormulaExecutor) -> None:
        ours, theirs = socket.socketpair()
        self.peer = Peer(theirs)
        scheduler = FirstComeScheduler()
        engine = Engine(channel=Channel(ours), first=Epoch(number=0, scheduler=scheduler, executor=executor))
        self.exit_codes: list[int] = []
        self.thread = threading.Thread(
            target=lambda: self.exit_codes.append(serve(Channel(ours), lambda: (engine, READY)))
        )
        self.thread.start()
        assert self.peer.next() == READY

    def exit_code(self) -> int:
        self.thread.join(5)
        return self.exit_codes[0]


@pytest.fixture
def running() -> Iterator[Running]:
    started = Running(FormulaExecutor())
    yield started
    started.peer.connection.close()
    assert started.exit_code() == 0


def request(id_: str, count: int = 5, **options) -> Request:
    return replace(
        Request(
            id=id_, app=0, chain=0, isolation_group="g", prompt=(5, 6, 7), emitted=0,
            max_tokens=count, stop_token_ids=(), sampling=Sampling(),
        ),
        **options,
    )  # fmt: skip


def test_a_request_gets_its_tokens_and_one_end(running: Running):
    running.peer.send(Submit(request=request("a", 6)))
    tokens, reasons, frames = running.peer.until_ends("a")
    assert tokens["a"] == [token_at(0, 3 + index) for index in range(6)]
    assert reasons == {"a": "length"}
    assert frames == 6


class SlowVocabulary(FormulaExecutor):
    """Takes its time to index a vocabulary, beside the steps."""

    def __init__(self) -> None:
        super().__init__(step_s=0.002)
        self.is_indexed = threading.Event()
        self.asked: list[int] = []

    def index(self, chain: int) -> bool:
        self.asked.append(chain)
        return self.is_indexed.is_set()


def test_streams_go_on_while_the_first_grammars_vocabulary_is_indexed():
    executor = SlowVocabulary()
    running = Running(executor)
    steered = Sampling(steering=Steering(grammar="start: /a+/"))
    peer = running.peer
    peer.send(*(Submit(request=request(name, 3, sampling=steered)) for name in ("first", "second", "gone")))
    peer.send(Submit(request=request("stream", 60)), Submit(request=request("plain", 3)))
    tokens, reasons, _ = peer.until_ends("stream", "plain")
    assert (len(tokens["stream"]), reasons["stream"]) == (60, "length")
    assert set(executor.asked) == {0}
    peer.send(Cancel(request="gone"))
    assert peer.until_ends("gone")[1] == {"gone": "cancelled"}
    executor.is_indexed.set()
    tokens, reasons, _ = peer.until_ends("first", "second")
    assert [len(tokens[name]) for name in ("first", "second")] == [3, 3]
    assert set(reasons.values()) == {"length"}
    peer.connection.close()
    assert running.exit_code() == 0


def test_one_frame_a_step_for_all_requests(running: Running):
    names = [f"r{index}" for index in range(20)]
    running.peer.send(*(Submit(request=request(name, 50)) for name in names))
    tokens, reasons, frames = running.peer.until_ends(*names)
    assert all(len(tokens[name]) == 50 for name in names)
    assert set(reasons.values()) == {"length"}
    assert frames <= 60


def test_a_first_row_is_told_once(running: Running):
    running.peer.send(Submit(request=request("a", 3)))
    frames = [frame for frame in (running.peer.next() for _ in range(4)) if isinstance(frame, Tokens)]
    assert [frame.started for frame in frames] == [("a",), (), ()]
    assert frames[0].load.rows == 1
    assert frames[0].load.tokens == 3
    assert frames[0].load.chains == 1
    assert isinstance(frames[0].events[0], TokensEvent)


def test_a_restart_goes_on_where_it_was(running: Running):
    running.peer.send(Submit(request=request("a", 10)))
    whole = running.peer.until_ends("a")[0]["a"]
    prompt = (5, 6, 7, *whole[:4])
    running.peer.send(Submit(request=request("b", 10, prompt=prompt, emitted=4)))
    assert running.peer.until_ends("b")[0]["b"] == whole[4:]


def test_cancel_ends_within_a_step():
    started = Running(FormulaExecutor(step_s=0.05))
    started.peer.send(Submit(request=request("a", 10_000)))
    assert isinstance(started.peer.next(), Tokens)
    began_s = time.monotonic()
    started.peer.send(Cancel(request="a"), Cancel(request="unknown"))
    assert started.peer.until_ends("a")[1] == {"a": "cancelled"}
    assert time.monotonic() - began_s < 0.5
    started.peer.send(StatsQuery())
    assert started.peer.next() == Stats(
        unfinished=0,
        steps=pytest.approx(2, abs=2),
        pages=(PageUsage(total=PAGES, free=PAGES, idle=0, held=0),),
    )
    started.peer.connection.close()
    assert started.exit_code() == 0


def test_the_same_id_twice_is_refused(running: Running):
    running.peer.send(Submit(request=request("a", 2000)), Submit(request=request("a", 3)))
    while not isinstance(message := running.peer.next(), End):
        pass
    assert message.events[0].reason == "error"


def test_draining_finishes_and_refuses():
    started = Running(FormulaExecutor(step_s=0.01))
    started.peer.send(Submit(request=request("a", 20)), Drain(), Submit(request=request("b", 5)))
    tokens, reasons, _ = started.peer.until_ends("a", "b")
    assert reasons == {"a": "length", "b": "error"}
    assert len(tokens["a"]) == 20
    assert started.exit_code() == 0


def test_shutdown_ends_at_once():
    started = Running(FormulaExecutor(step_s=0.01))
    started.peer.send(Submit(request=request("a", 10_000)))
    assert isinstance(started.peer.next(), Tokens)
    started.peer.send(Shutdown())
    assert started.exit_code() == 0


def test_a_server_that_goes_ends_it_while_it_works():
    started = Running(FormulaExecutor(step_s=0.01))
    started.peer.send(Submit(request=request("a", 10_000)))
    started.peer.next()
    started.peer.connection.close()
    assert started.exit_code() == 0


def test_frames_of_a_stranger_end_it():
    started = Running(FormulaExecutor())
    started.peer.connection.sendall(b"\xff\xff\xff\xff")
    message = started.peer.next()
    assert isinstance(message, EngineError)
    assert started.exit_code() == 1


class SpoiledExecutor(FormulaExecutor):
    def collect(self) -> StepResult:
        result = super().collect()
        fault = Fault(scope="worker", message="the device is gone")
        rows = tuple(RowResult(tokens=(), logprobs=(), fault=fault) for _ in result.rows)
        return StepResult(step=result.step, rows=rows)


class RecordedExecutor(FormulaExecutor):
    def collect(self) -> StepResult:
        launched = Launched(replays=2, op_by_op=("rows of several tokens",), recorded=1, recording_s=0.5)
        return replace(super().collect(), launched=launched)


def test_launches_are_counted_by_how_they_were_made():
    started = Running(RecordedExecutor())
    started.peer.send(Submit(request=request("a", 4)))
    started.peer.until_ends("a")
    started.peer.send(StatsQuery())
    while not isinstance(message := started.peer.next(), Stats):
        pass
    assert (message.steps, message.counts.replays) == (4, 8)
    assert message.counts.op_by_op == {"rows of several tokens": 4}
    assert (message.counts.recorded, message.counts.recording_s) == (4, 2.0)
    started.peer.send(Shutdown())
    assert started.exit_code() == 0


def test_a_spoiled_worker_ends_the_engine_and_not_its_requests():
    started = Running(SpoiledExecutor())
    started.peer.send(Submit(request=request("a")))
    message = started.peer.next()
    assert isinstance(message, EngineError)
    assert "the device is gone" in message.message
    assert started.exit_code() == 1


class RaisingExecutor(FormulaExecutor):
    def submit(self, step: Step) -> None:
        raise RuntimeError("a bug")


def test_a_bug_is_told_before_the_end():
    started = Running(RaisingExecutor())
    started.peer.send(Submit(request=request("a")))
    assert started.peer.next() == EngineError(code="BC999", message="RuntimeError: a bug")
    assert started.exit_code() == 1


def test_an_error_while_loading_is_told_with_its_code():
    ours, theirs = socket.socketpair()

    def build() -> tuple[Engine, Ready]:
        problems = Diagnostics()
        problems.report("BC905", "this runtime lacks cuda")
        raise DiagnosticError(problems)

    assert serve(Channel(ours), build) == 1
    assert Peer(theirs).next() == EngineError(code="BC905", message="this runtime lacks cuda")


def test_idle_it_sleeps(running: Running):
    before_s = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before_s < 0.1


def test_requests_are_read_between_steps():
    """A long queue of work does not keep a newcomer's frame in the socket."""
    started = Running(FormulaExecutor(step_s=0.005))
    started.peer.send(*(Submit(request=request(f"r{i}", 500)) for i in range(10)))
    started.peer.next()
    began_s = time.monotonic()
    started.peer.send(Submit(request=request("new", 1)))
    while True:
        message = started.peer.next()
        if isinstance(message, Tokens) and "new" in message.started:
            break
    assert time.monotonic() - began_s < 0.5
    started.peer.connection.close()
    assert started.exit_code() == 0


def test_the_channel_notices_a_closed_socket():
    ours, theirs = socket.socketpair()
    theirs.close()
    channel = Channel(ours)
    with pytest.raises(ServerGoneError):
        channel.receive(None)
    with pytest.raises(ServerGoneError):
        channel.send(READY)


@pytest.mark.parametrize("step_s", ["0.0", "60"])
def test_a_process_does_not_outlive_its_server(tmp_path: Path, step_s: str):
    """Idle, or in a step that hangs."""
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = (sys.executable, "-m", "tests.runtime.server.standin", "--digest", "d")
        options = ("--socket", str(path), "--step-s", step_s)
        process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
        try:
            connection, _ = listener.accept()
            peer = Peer(connection)
            assert peer.next() == READY
            peer.send(Submit(request=request("a", 5)))
            time.sleep(0.2)
            connection.close()
            process.wait(8)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()


@pytest.mark.parametrize("executor", ["null", "torch"])
@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (
            fleet_plan().model_copy(update={"requires": ("devices:3", "format:1")}),
            r"lacks devices:3 \(an instance on several devices, a cell or a pipeline, is simulated so far, and not",
        ),
        (
            fleet_plan().model_copy(update={"requires": ("format:1", "roles:readers")}),
            r"lacks roles:readers \(instances that read prompts for others are simulated so far, and not served",
        ),
        (fleet_plan(adapters=20, devices=6, memory_bytes=1300 << 10), r"lacks instances:3 \(an engine runs one inst"),
    ],
    ids=["cell", "readers", "several"],
)
def test_what_takes_several_devices_at_once_is_refused_in_words(
    executor: str, plan: ExecutionPlan, words: str, tmp_path: Path
) -> None:
    write_plan(plan, tmp_path / "plan.json")
    options = argparse.Namespace(plan=tmp_path / "plan.json", zoo=tmp_path, executor=executor, null_step_s=0.0, epoch=1)
    with pytest.raises(DiagnosticError, match=words):
        load(options, channel=None)
