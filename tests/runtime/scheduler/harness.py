"""A scheduler, a KV index and the null executor in one process, and what each request would answer alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from blockc_runtime.executor.null import NullExecutor, next_token, sampled_token
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import ChainLimits, EngineLimits, GroupLimits
from blockc_runtime.request import EndEvent, Request, Sampling, TokensEvent
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import Step
from blockc_runtime.turn import next_step

VOCAB = 50_000
PAGE = 4
MAX_MODEL_LEN = 64
# What stands before every prompt of chain 5: not a whole number of pages, and an id beyond the vocabulary.
VIRTUAL = (7, 7, VOCAB + 10_000, 7, 7, 7)


# Of each segment.
BLOCKS = (2, 3, 1, 4, 2, 5)


def limits(
    *,
    pages=(40, 40),
    max_rows=8,
    max_batched_tokens=32,
    weights=(1.0, 1.0, 2.0),
    windows=(None, None),
    parts=1,
    overlaps=False,
):
    """Four chains on two KV groups (0 and 1 share both domains, 2 the lower one, 3 none), a fifth on its own.

    A sixth, with virtual tokens, in the groups of the first four.
    """
    domains = [("low", "high"), ("low", "high"), ("low", "other"), ("foreign", "own")]

    def chain(groups, own_domains, segments, **more):
        return ChainLimits(
            groups=groups, domains=own_domains, segments=segments, instance=0, max_model_len=MAX_MODEL_LEN,
            blocks=tuple(BLOCKS[segment] for segment in segments), **more,
        )  # fmt: skip

    both = [chain((0, 1), pair, (0, 1 + (i == 3), 3)) for i, pair in enumerate(domains)]
    third = chain((2,), ("third",), (4, 5))
    prefixed = chain((0, 1), ("prefixed", "prefixed"), (0, 1, 3), virtual_tokens=VIRTUAL)
    return EngineLimits(
        groups=(
            GroupLimits(pages=pages[0], page_tokens=PAGE, window=windows[0]),
            GroupLimits(pages=pages[1], page_tokens=PAGE, window=windows[1]),
            GroupLimits(pages=pages[0] // 2, page_tokens=2 * PAGE, window=None),
        ),
        chains=(*both, third, prefixed),
        segment_count=6,
        max_batched_tokens=max_batched_tokens,
        max_rows=max_rows,
        prefill_parts=parts,
        overlaps=overlaps,
        tenants=tuple(index % len(weights) for index in range(6)),
        weights=weights,
    )


def null_plan(own: EngineLimits):
    """As much of a plan as the null executor reads."""
    return SimpleNamespace(
        chains=[
            SimpleNamespace(
                vocab_size=VOCAB,
                vector_width=0 if chain.draws else 3,
                bank=chain.bank,
                segments=chain.segments,
                kv=[
                    SimpleNamespace(group=group, domain=domain)
                    for group, domain in zip(chain.groups, chain.domains, strict=True)
                ],
            )
            for chain in own.chains
        ],
        kv_groups=own.groups,
        instances=[
            SimpleNamespace(
                side_slots=own.bank_slots,
                room_bytes=own.room_bytes,
                turns=[SimpleNamespace(segment=segment, nbytes=turn.nbytes) for segment, turn in own.turns.items()],
            )
        ],
    )


def request(name, prompt, *, chain=0, app=0, max_tokens=8, group="g", stop=(), emitted=0, sampling=None):
    return Request(
        id=name,
        app=app,
        chain=chain,
        isolation_group=group,
        prompt=tuple(prompt),
        emitted=emitted,
        max_tokens=max_tokens,
        stop_token_ids=tuple(stop),
        sampling=sampling or Sampling(),
    )


def alone(own: Request) -> list[int]:
    """What the null model answers to a request by itself, without pages, batches or neighbours."""
    tokens, out = [*(VIRTUAL if own.chain == 5 else ()), *own.prompt], []
    while own.emitted + len(out) < own.max_tokens and len(tokens) < MAX_MODEL_LEN:
        if own.sampling.temperature > 0:
            index = own.emitted + len(out)
            token = sampled_token(own.chain, tokens, VOCAB, seed=own.sampling.seed, output_index=index)
        else:
            token = next_token(own.chain, tokens, VOCAB)
        out.append(token)
        tokens.append(token)
        if token in own.stop_token_ids:
            break
    return out


@dataclass
class Run:
    """A scheduler with its executor, and everything that came out, by request."""

    own: EngineLimits
    options: dict[str, int] = field(default_factory=dict)
    scheduler: Scheduler = field(init=False)
    kv: KvIndex = field(init=False)
    executor: NullExecutor = field(init=False)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, EndEvent] = field(default_factory=dict)
    log: list[object] = field(default_factory=list)
    now_s: float = 0.0
    in_flight: list[Step] = field(default_factory=list)

    def __post_init__(self):
        self.kv = KvIndex(self.own)
        self.scheduler = Scheduler(self.own, self.kv, **self.options)
        self.executor = NullExecutor(null_plan(self.own), is_seeded=True)

    def admit(self, own: Request):
        self.tokens.setdefault(own.id, [])
        self.take(self.scheduler.admit(own, self.now_s))

    def take(self, events):
        for event in events:
            self.log.append(event)
            assert event.request not in self.ends, "something happened to a request after its end"
            if isinstance(event, TokensEvent):
                self.tokens[event.request] += event.tokens
            else:
                self.ends[event.request] = event

    def step(self):
        """Schedule, run and complete one step; None if nothing can run."""
        events, step = next_step(self.scheduler, self.executor, self.now_s)
        self.take(events)
        self.now_s += 1.0
        if step is None:
            return None
        self.executor.submit(step)
        self.take(self.scheduler.complete(step, self.executor.collect(), self.now_s))
        self.kv.check_integrity()
        return step

    def turn(self):
        """As the engine does where steps overlap: issue one behind the one in flight, then take that one in.

        What was issued, and what has come back; None for neither.
        """
        events, issued = next_step(self.scheduler, self.executor, self.now_s)
        self.take(events)
        self.now_s += 1.0
        if issued is not None:
            self.executor.submit(issued)
            self.in_flight.append(issued)
        done = self.in_flight.pop(0) if len(self.in_flight) > (issued is not None) else None
        if done is not None:
            self.take(self.scheduler.complete(done, self.executor.collect(), self.now_s))
        self.kv.check_integrity()
        return issued, done

    def drain(self, bound=4000):
        for _ in range(bound):
            if not self.scheduler.has_work:
                return
            if self.own.overlaps:
                assert self.turn() != (None, None), "requests are left, and nothing runs"
            else:
                assert self.step() is not None, "requests are left, and nothing runs"
        raise AssertionError("work is left: a request starves")

    def held_pages(self) -> int:
        return sum(usage.held for usage in self.kv.usage())
