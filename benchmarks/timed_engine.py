"""The engine proper under requests that come at their time, in this process, with a reference step beside them.

In: a plan, its executor and a workload. Out: when each request got its first token and its last, what each step took,
and what the reference took meanwhile. The reference is a fixed load of another small model: where it takes longer than
it did while a profile was measured, so does everything, and the host is why. The load's clock stands while it runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from blockc.cost.fit import RowShape, Sample
from blockc.measure import Load, passes
from blockc.plan import ExecutionPlan
from blockc.simulate import Workload
from blockc.simulate.workload import Arrival
from blockc_runtime.engine import Engine
from blockc_runtime.epoch import Epoch
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import engine_limits
from blockc_runtime.request import Request, Sampling
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import Executor, Step
from blockc_runtime.wire.messages import Drain, End, Message, Submit, Tokens

_GREEDY = Sampling()
_EVERY_S = 1.0


@dataclass(slots=True)
class Clock:
    """The wall's; or, ``by_cpu``, the CPU time of this thread, with waits skipped: nobody else's work is in it."""

    by_cpu: bool = False
    _ahead_s: float = 0.0

    def now_s(self) -> float:
        """Since some moment."""
        return (time.thread_time() if self.by_cpu else time.monotonic()) + self._ahead_s

    def wait(self, seconds: float) -> None:
        """Until so much later."""
        if self.by_cpu:
            self._ahead_s += seconds
        else:
            time.sleep(seconds)

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """Afterwards it is as late as before."""
        began_s = self.now_s()
        yield
        self._ahead_s -= self.now_s() - began_s


@dataclass(slots=True)
class Reference:
    """Times four requests that decode and a prompt that comes meanwhile, whenever the last time is a second ago."""

    plan: ExecutionPlan
    executor: Executor
    clock: Clock
    times_s: list[float] = field(default_factory=list)
    last_s: float = 0.0

    def tick(self) -> None:
        """Run if it is time to."""
        if self.clock.now_s() - self.last_s >= _EVERY_S:
            self.run()

    def run(self) -> None:
        """Run now."""
        apps = self.plan.apps
        load = Load(tokens=112, chains=tuple(apps[i % len(apps)].chain for i in range(5)), prompt=16, late=48)
        found = passes(self.plan, self.executor, load, clock=self.clock.now_s)
        self.times_s.append(sum(sample.seconds for sample in found))
        self.last_s = self.clock.now_s()

    def taken(self) -> list[float]:
        """What it took each time since this was last asked for, seconds; it runs once more before."""
        self.run()
        times_s, self.times_s = self.times_s, []
        return times_s


class Noting:
    """An executor that says which step was submitted last."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.step: Step | None = None

    def submit(self, step: Step) -> None:
        """Note it, and go on."""
        self.step = step
        self._executor.submit(step)

    def __getattr__(self, name: str) -> object:
        return getattr(self._executor, name)


@dataclass(slots=True)
class TimedChannel:
    """In place of the server's socket: hands requests out when their time has come, then asks for the end."""

    waiting: list[tuple[float, Request]]  # seconds from the start, the next one last
    noting: Noting
    clock: Clock
    reference: Reference | None = None
    first_s: dict[str, float] = field(default_factory=dict)
    end_s: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    steps: list[Sample] = field(default_factory=list)
    _start_s: float = field(init=False)
    _turn_s: float = 0.0

    def __post_init__(self) -> None:
        """The time is 0."""
        self._start_s = self.clock.now_s()

    def now_s(self) -> float:
        """Since the start, without the reference."""
        return self.clock.now_s() - self._start_s

    def receive(self, wait_s: float | None) -> list[Message]:
        """What has come; waits for the next one as long as that."""
        self.note_step()
        self._refer()
        now_s = self.now_s()
        if self.waiting and self.waiting[-1][0] > now_s and wait_s != 0.0:
            until_s = self.waiting[-1][0] - now_s
            self.clock.wait(until_s if wait_s is None else min(wait_s, until_s))
            now_s = self.now_s()
        found: list[Message] = []
        while self.waiting and self.waiting[-1][0] <= now_s:
            found.append(Submit(request=self.waiting.pop()[1]))
        self._turn_s = self.now_s()
        return found if self.waiting else [*found, Drain()]

    def send(self, *messages: Message) -> None:
        """Note when what is due came."""
        now_s = self.now_s()
        for message in messages:
            if isinstance(message, Tokens):
                for event in message.events:
                    self.first_s.setdefault(event.request, now_s)
                    self.tokens[event.request] = self.tokens.get(event.request, 0) + len(event.tokens)
            elif isinstance(message, End):
                self.end_s |= {event.request: now_s for event in message.events}
                self.refused |= {event.request for event in message.events if event.reason == "error"}

    def note_step(self) -> None:
        """All that the engine has done since it was last here is of one step."""
        step, self.noting.step = self.noting.step, None
        if step is not None:
            rows = tuple(
                RowShape(chain=row.chain, start=row.start, tokens=len(row.tokens), samples=row.samples > 0)
                for row in step.rows
            )
            self.steps.append(Sample(rows=rows, seconds=self.now_s() - self._turn_s))

    def _refer(self) -> None:
        if self.reference is not None:
            with self.clock.standing():
                self.reference.tick()


def served(
    plan: ExecutionPlan,
    executor: Executor,
    workload: Workload,
    *,
    clock: Clock,
    reference: Reference | None = None,
) -> TimedChannel:
    """The engine under the requests of a workload."""
    random = np.random.default_rng(0)
    requests = [(item.at_s, _request(plan, number, item, random)) for number, item in enumerate(workload.arrivals)]
    limits = engine_limits(plan)
    noting = Noting(executor)
    epoch = Epoch(number=0, scheduler=Scheduler(limits, KvIndex(limits)), executor=noting)  # type: ignore[arg-type]
    channel = TimedChannel(
        waiting=sorted(requests, key=lambda entry: -entry[0]), noting=noting, clock=clock, reference=reference
    )
    Engine(channel=channel, first=epoch, clock=channel.now_s).run()  # type: ignore[arg-type]
    channel.note_step()
    return channel


def core_waits_s() -> float:
    """How long threads of this process have waited for a core since they began; 0 where the system does not say."""
    waits_ns = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            waits_ns += int(thread.read_text().split()[1])
    return waits_ns / 1e9


def figures(channel: TimedChannel, workload: Workload) -> dict[str, float]:
    """Of a run of the engine, as `blockc.simulate.report` defines them."""
    ended = [str(number) for number in range(len(workload.arrivals)) if str(number) not in channel.refused]
    ttft = [channel.first_s[name] - workload.arrivals[int(name)].at_s for name in ended]
    tpot = [
        (channel.end_s[name] - channel.first_s[name]) / (channel.tokens[name] - 1)
        for name in ended
        if channel.tokens[name] > 1
    ]
    tokens = sum(channel.tokens[name] for name in ended)
    return named(tokens / max(channel.end_s.values()), np.percentile(ttft, (50, 95)), np.percentile(tpot, (50, 95)))


def named(tokens_per_s: float, ttft: Sequence[float], tpot: Sequence[float]) -> dict[str, float]:
    """Throughput, and p50 and p95 of both latencies, which are given in seconds."""
    return {
        "tokens_per_s": round(float(tokens_per_s), 2),
        "ttft_p50_ms": round(1000 * float(ttft[0]), 2),
        "ttft_p95_ms": round(1000 * float(ttft[1]), 2),
        "tpot_p50_ms": round(1000 * float(tpot[0]), 3),
        "tpot_p95_ms": round(1000 * float(tpot[1]), 3),
    }


def _request(plan: ExecutionPlan, number: int, item: Arrival, random: np.random.Generator) -> Request:
    app = plan.apps[item.app]
    vocab = plan.chains[app.chain].vocab_size
    return Request(
        id=str(number),
        app=item.app,
        chain=app.chain,
        isolation_group=app.isolation_group,
        prompt=tuple(int(token) for token in random.integers(3, vocab, item.prompt_tokens)),
        emitted=0,
        max_tokens=item.output_tokens,
        stop_token_ids=(),
        sampling=_GREEDY,
    )
