"""A request on its way through the engine: the one mutable record of the scheduler.

Invariant: ``tokens`` (virtual ones, prompt and output) only grows; KV of its first ``computed`` tokens is committed.
Decode is not a state: a request whose only token without KV is its last one decodes, whatever brought it there.

What its rows in flight compute and draw is counted on (``ahead``, ``due``), so that another row can be issued behind
them. Whatever that is based on, nothing is committed, published or told before the results are there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.request import Request
from blockc_runtime.scheduler.parts import Chunk
from blockc_runtime.step import Feed, Row

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
    token_classes: int = 0  # so many scores are wanted of each of its tokens
    scores: list[float] = field(default_factory=list)  # of its first tokens, as far as they are computed
    state: State = "waiting"
    computed: int = 0
    cached: int | None = None  # prompt tokens found when it first ran
    charged: int = 0  # of virtual tokens and prompt; once: preemption is not its tenant's doing
    step: int | None = None  # the last step in flight that has a row of it
    waits: bool = False  # no row of it is issued before that step is done
    ahead: int = 0  # tokens for which rows in flight compute KV
    due: int = 0  # tokens that rows in flight draw
    feed: Feed | None = None  # the row that draws the last of them
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
    def reached(self) -> int:
        """Tokens with KV, once what is in flight is done."""
        return self.computed + self.ahead

    @property
    def length(self) -> int:
        """Tokens that it has, once what is in flight is done."""
        return len(self.tokens) + self.due

    @property
    def remaining(self) -> int:
        """Tokens without KV, once what is in flight is done; at least 1 unless it `is_ending`."""
        return len(self.tokens) + self.due - self.computed - self.ahead

    @property
    def is_ending(self) -> bool:
        """Whether what is in flight ends it, whatever is drawn."""
        return self.due > 0 and self.length >= self.limit_tokens

    @property
    def output_index(self) -> int:
        """Index of the next token to draw among all outputs, those of an earlier engine included."""
        own = self.request
        return own.emitted + len(self.tokens) + self.due - self.virtual - len(own.prompt)

    @property
    def is_scored(self) -> bool:
        """Whether log probabilities of its prompt are still asked for; they are complete before its first output."""
        own = self.request
        return own.prompt_logprobs is not None and own.emitted == 0 and self.output_index == 0

    def row(self, count: int, pages: tuple[tuple[int | None, ...], ...], blocks: tuple[int, int] | None) -> Row:
        """The next ``count`` tokens as a row; it samples if they reach the end, of the layers too."""
        own, tokens = self.request, self.tokens
        start = self.computed + self.ahead
        end = start + count
        samples = end == len(tokens) + self.due and (self.chunk is None or self.chunk.is_last)
        is_fed = end > len(tokens)
        looks_back = samples and not is_fed and own.sampling.steering is not None
        is_scored = own.prompt_logprobs is not None and self.is_scored
        return Row(
            request=own.id,
            chain=own.chain,
            tokens=(0,) if is_fed else tuple(tokens[start:end]),
            start=start,
            pages=pages,
            samples=1 if samples else 0,
            sampling=own.sampling if samples else None,
            output_index=self.output_index,
            history=tuple(tokens[self.virtual :]) if looks_back else (),
            given=tuple(tokens[max(start, self.virtual) + 1 : end + 1]) if is_scored else (),
            given_top=own.prompt_logprobs or 0,
            blocks=blocks,
            each=self.token_classes > 0 and (self.chunk is None or self.chunk.is_last),
            fed=self.feed if is_fed else None,
        )
