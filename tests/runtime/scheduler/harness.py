"""A scheduler, a KV index and the null executor, driven by a seeded adversary."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

from blockc_runtime.executor.null import NullExecutor, next_token
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import ChainLimits, EngineLimits, GroupLimits
from blockc_runtime.request import EndEvent, Request, Sampling, TokensEvent
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import Fault, RowResult

VOCAB = 50_000
PAGE = 4


def limits(*, pages=(40, 40), max_rows=8, max_batched_tokens=32, weights=(1.0, 1.0, 2.0), windows=(None, None)):
    """Four chains on two KV groups: 0 and 1 share both domains, 2 the lower one, 3 none."""
    domains = [("low", "high"), ("low", "high"), ("low", "other"), ("foreign", "own")]
    return EngineLimits(
        groups=tuple(
            GroupLimits(pages=count, page_tokens=PAGE, window=window)
            for count, window in zip(pages, windows, strict=True)
        ),
        chains=tuple(
            ChainLimits(groups=(0, 1), domains=pair, segments=(0, 1 + (index == 3), 3), instance=0, max_model_len=64)
            for index, pair in enumerate(domains)
        ),
        segment_count=4,
        max_batched_tokens=max_batched_tokens,
        max_rows=max_rows,
        tenants=tuple(index % len(weights) for index in range(6)),
        weights=weights,
    )


def null_plan(own: EngineLimits):
    """As much of a plan as the null executor reads."""
    return SimpleNamespace(
        chains=[
            SimpleNamespace(vocab_size=VOCAB, kv=[SimpleNamespace(group=group) for group in chain.groups])
            for chain in own.chains
        ],
        kv_groups=[SimpleNamespace(page_tokens=group.page_tokens, window=group.window) for group in own.groups],
    )


def request(name, prompt, *, chain=0, app=0, max_tokens=8, group="g", stop=(), emitted=0):
    return Request(
        id=name, app=app, chain=chain, isolation_group=group, prompt=tuple(prompt), emitted=emitted,
        max_tokens=max_tokens, stop_token_ids=tuple(stop), sampling=Sampling(),
    )  # fmt: skip


def alone(own: Request, max_model_len=64) -> list[int]:
    """What the null model answers to a request by itself."""
    tokens, out = list(own.prompt), []
    while own.emitted + len(out) < own.max_tokens and len(tokens) < max_model_len:
        # Chains 0 and 1 are one model under two names only if they are the same chain; the null model tells them apart.
        out.append(next_token(own.chain, tokens, VOCAB))
        tokens.append(out[-1])
        if out[-1] in own.stop_token_ids:
            break
    return out


@dataclass
class Run:
    """A scheduler with its executor, and everything that came out, by request."""

    own: EngineLimits
    scheduler: Scheduler = field(init=False)
    kv: KvIndex = field(init=False)
    executor: NullExecutor = field(init=False)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, EndEvent] = field(default_factory=dict)
    log: list[object] = field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self):
        self.kv = KvIndex(self.own)
        self.scheduler = Scheduler(self.own, self.kv)
        self.executor = NullExecutor(null_plan(self.own))

    def admit(self, own: Request):
        self.tokens.setdefault(own.id, [])
        self.take(self.scheduler.admit(own))

    def take(self, events):
        for event in events:
            self.log.append(event)
            assert event.request not in self.ends, "something happened to a request after its end"
            if isinstance(event, TokensEvent):
                self.tokens[event.request] += event.tokens
            else:
                self.ends[event.request] = event

    def step(self, faults: random.Random | None = None, rate=0.0):
        step = self.scheduler.schedule(self.now_s)
        self.now_s += 1.0
        if step is None:
            return None
        self.executor.submit(step)
        result = self.executor.collect()
        if faults is not None:
            result = spoil(result, faults, rate)
        self.log.append([(row.request, len(row.tokens)) for row in step.rows])
        self.take(self.scheduler.complete(step, result, self.now_s))
        self.kv.check_integrity()
        return step

    def drain(self, bound=4000):
        for _ in range(bound):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("work is left: a request starves")


def spoil(result, rng: random.Random, rate: float):
    """Turn results into faults of a row, a launch or the worker."""
    draw = rng.random()
    if draw < rate / 3:
        scope, hit = "worker", range(len(result.rows))
    elif draw < rate:
        first = rng.randrange(len(result.rows))
        last = first + 1 if rng.random() < 0.5 else rng.randint(first + 1, len(result.rows))
        scope, hit = ("row" if last == first + 1 else "launch"), range(first, last)
    else:
        return result
    rows = list(result.rows)
    for index in hit:
        rows[index] = RowResult(tokens=(), logprobs=(), fault=Fault(scope=scope, message=f"injected {scope} fault"))
    return replace(result, rows=tuple(rows))
