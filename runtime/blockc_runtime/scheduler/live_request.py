"""A request on its way through the engine: the one mutable record of the scheduler.

Invariant: ``tokens`` (virtual ones, prompt and output) only grows; KV of its first ``computed`` tokens is committed.
Decode is not a state: a request whose only token without KV is its last one decodes, whatever brought it there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.request import Request
from blockc_runtime.scheduler.parts import Chunk
from blockc_runtime.step import Row

State = Literal["waiting", "running", "ended"]
Order = tuple[int, float, int]


@dataclass(slots=True, kw_only=True, eq=False)
class LiveRequest:
    """``arrival`` numbers requests in the order of admission; ``limit_tokens`` is the length at which it must end.

    ``order``: that of its tenant's requests: by priority, then by when the first token is due, then by arrival.

    The first ``virtual`` of its tokens are its chain's: nobody outside the engine sees them.
    """

    request: Request
    tenant: int
    arrival: int
    due_s: float
    limit_tokens: int
    tokens: list[int]
    prefix: Prefix
    virtual: int = 0
    whole: bool = False  # its tokens have to stand in one step
    state: State = "waiting"
    computed: int = 0
    cached: int | None = None  # prompt tokens found when it first ran
    charged: int = 0  # of virtual tokens and prompt; once: preemption is not its tenant's doing
    step: int | None = None  # the step in flight that has a row of it
    chunk: Chunk | None = None  # on its way through the layers, part by part
    losses: int = 0  # workers lost under it
    lacked_s: float | None = None  # when it could have started, but for sides or blocks that were not in memory
    pauses: bool = False  # it ended well, and its session's pages are to be kept

    @property
    def order(self) -> Order:
        """Sort key among its tenant's requests."""
        return self.request.priority, self.due_s, self.arrival

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def remaining(self) -> int:
        """Tokens without KV, at least 1."""
        return len(self.tokens) - self.computed

    @property
    def output_index(self) -> int:
        """Index of the next token among all outputs, those of an earlier engine included."""
        return self.request.emitted + len(self.tokens) - self.virtual - len(self.request.prompt)

    @property
    def is_scored(self) -> bool:
        """Whether log probabilities of its prompt are still asked for; they are complete before its first output."""
        own = self.request
        return own.prompt_logprobs is not None and own.emitted == 0 and self.output_index == 0

    def row(self, count: int, pages: tuple[tuple[int | None, ...], ...], blocks: tuple[int, int] | None) -> Row:
        """The next ``count`` tokens as a row; it samples if they reach the end, of the layers too."""
        end = self.computed + count
        samples = end == len(self.tokens) and (self.chunk is None or self.chunk.is_last)
        first = max(self.computed, self.virtual) + 1
        return Row(
            request=self.request.id,
            chain=self.request.chain,
            tokens=tuple(self.tokens[self.computed : end]),
            start=self.computed,
            pages=pages,
            samples=1 if samples else 0,
            sampling=self.request.sampling if samples else None,
            output_index=self.output_index,
            history=tuple(self.tokens[self.virtual :]) if samples and self.request.sampling.steering else (),
            given=tuple(self.tokens[first : end + 1]) if self.is_scored else (),
            given_top=self.request.prompt_logprobs or 0,
            blocks=blocks,
        )
