"""``Step``: what the scheduler asks of an executor, as plain data.

A step lists its rows once; its launches, in order, say which rows pass which segment. Everything an executor needs
to know of a row is in the row: executors keep weights and pages, and no request state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from blockc_runtime.request import Sampling, TokenLogprob


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A row of an earlier step: the last token that it draws is the token of another row."""

    step: int
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A run of consecutive tokens of one request.

    ``tokens[i]`` stands at position ``start + i``. ``pages[g]`` is the page table of the g-th KV group of the row's
    chain (in the order of ``ChainEntry.kv``) and covers positions ``0 .. start + len(tokens) - 1``; a page in it may
    be None where a window has passed it. ``samples``: for how many trailing tokens logits are needed (0: the chunk
    does not reach the end of the prompt; 1: draw the next token). The first token drawn has ``output_index``.
    ``history``: all tokens but virtual ones up to the row's last, prompt and then outputs; only where ``sampling`` is
    steered by them, else empty. ``given``: prompt tokens whose log probabilities are asked for, with the ``given_top``
    likeliest beside each. The last stands behind the token before those that ``samples`` counts, the others before it.
    ``blocks``: first and stop of the run of its chain's blocks that the row passes in this step; None: all of them. A
    row that stops before the last one yields nothing; its hidden states are parked, and its next row goes on from them.
    ``each``: its chain yields scores of classes for every token, and all of them are wanted.
    ``fed``: where its one token comes from, if the step that draws it was in flight when this one was issued. Until
    then a 0 stands in ``tokens``, and ``history`` is empty: it is that of the other row, and the token (`filled`).
    """

    request: str
    chain: int
    tokens: tuple[int, ...]
    start: int
    pages: tuple[tuple[int | None, ...], ...]
    samples: int
    sampling: Sampling | None
    output_index: int
    history: tuple[int, ...] = ()
    given: tuple[int, ...] = ()
    given_top: int = 0
    blocks: tuple[int, int] | None = None
    each: bool = False
    fed: Feed | None = None

    @property
    def logits(self) -> int:
        """For how many trailing tokens logits are needed."""
        return len(self.tokens) if self.each else len(self.given) + self.samples

    def filled(self, source: Row, token: int) -> Row:
        """The row with the token that ``source``, which feeds it, has drawn."""
        history = (*source.history, token) if source.history else ()
        return replace(self, tokens=(token,), history=history, fed=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One pass of a segment over the rows that travel through it (indices into ``Step.rows``, ascending).

    ``blocks``: first and stop of a run of the segment's blocks; None: all of them.
    """

    instance: int
    segment: int
    micro_batch: int
    rows: tuple[int, ...]
    blocks: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotFill:
    """From this step on the sides of ``chain`` are in ``slot`` of its bank, in place of what was there."""

    chain: int
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTurn:
    """The weights of ``segment`` are to be read. Those of ``out``, which nothing uses any more, go before that."""

    segment: int
    out: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One round of work. ``epoch`` numbers the plan in force; ``fills`` come before all launches.

    ``parked``: requests whose hidden states are kept behind this step; all others are dropped.
    """

    id: int
    epoch: int
    rows: tuple[Row, ...]
    launches: tuple[Launch, ...]
    fills: tuple[SlotFill, ...] = ()
    parked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An error as data. ``scope`` says what it spoils: a row, a launch (its rows), or the worker (everything)."""

    scope: Literal["row", "launch", "worker"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """What a row yielded: as many tokens as it asked samples for (none if ``fault``).

    ``given``: log probabilities of the row's ``given`` tokens. ``scores``: of a chain that yields scores of classes, or
    an embedding, in place of tokens: these values; where each token has scores, those of all, one after the other.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    fault: Fault | None = None
    scores: tuple[float, ...] = ()
    given: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """How a step's launches were made.

    ``replays``: those that were recorded graphs; ``op_by_op``: of each other one why it was not, where graphs are used
    at all. ``recorded``: graphs that were needed for the first time, and ``recording_s``: how long that took the host.
    """

    replays: int = 0
    op_by_op: tuple[str, ...] = ()
    recorded: int = 0
    recording_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Results in the order of ``Step.rows``."""

    step: int
    rows: tuple[RowResult, ...]
    launched: Launched = Launched()


class Executor(Protocol):
    """Runs steps in order. ``submit`` returns at once; ``collect`` waits for the oldest step in flight.

    A step's rows may be fed by rows of steps that are in flight when it is submitted. Errors never raise out of
    ``collect``: they are faults in the result, with a scope.
    """

    def prefetch(self, chain: int) -> None:
        """Begin to read the sides of a chain; returns at once."""

    def prefetched(self) -> Sequence[tuple[int, str | None]]:
        """Chains that have been read since the last call, with the problem of those that cannot be."""

    def bring(self, turn: SegmentTurn) -> None:
        """Let weights go, and begin to read those of a segment; returns at once."""

    def brought(self) -> Sequence[tuple[int, str | None]]:
        """Segments whose weights are there since the last call, with the problem of those that cannot be read."""

    def index(self, chain: int) -> bool:
        """Have a chain's vocabulary indexed for grammars; returns at once, with whether that is done (or cannot be)."""

    def submit(self, step: Step) -> None:
        """Queue a step."""

    def collect(self) -> StepResult:
        """Wait for the oldest queued step and return its result."""

    def close(self) -> None:
        """Free everything. Idempotent."""
