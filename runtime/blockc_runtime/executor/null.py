"""An executor without weights, for tests and load generation: tokens are a hash of what the pages hold.

It keeps a page memory of token ids. A drawn token is a hash of the chain and of *all* tokens up to there, read back
through the row's page tables, in every KV group: a wrong, stale or foreign page gives a wrong token.
"""

from __future__ import annotations

import time
import zlib
from array import array
from collections import deque
from collections.abc import Sequence

from blockc.plan import ExecutionPlan
from blockc_runtime.request import TokenLogprob
from blockc_runtime.step import Fault, Row, RowResult, Step, StepResult


def next_token(chain: int, tokens: Sequence[int], vocab_size: int) -> int:
    """What the null model of a chain says after ``tokens``."""
    return zlib.crc32(array("q", tokens).tobytes(), chain) % vocab_size


class NullExecutor:
    """Implements :class:`~blockc_runtime.step.Executor`. ``step_s``: how long every step pretends to take."""

    def __init__(self, plan: ExecutionPlan, *, step_s: float = 0.0) -> None:
        self._chains = [
            (chain.vocab_size, tuple((kv.group, plan.kv_groups[kv.group].page_tokens) for kv in chain.kv))
            for chain in plan.chains
        ]
        self._windows = [group.window for group in plan.kv_groups]
        self._memory: list[dict[int, list[int | None]]] = [{} for _ in plan.kv_groups]
        self._queue: deque[Step] = deque()
        self._step_s = step_s

    def submit(self, step: Step) -> None:
        """Queue a step."""
        self._queue.append(step)

    def collect(self) -> StepResult:
        """Run the oldest queued step."""
        step = self._queue.popleft()
        if self._step_s:
            time.sleep(self._step_s)
        for row in step.rows:
            self._write(row)
        return StepResult(step=step.id, rows=tuple(self._row(row) for row in step.rows))

    def close(self) -> None:
        """Forget everything."""
        self._queue.clear()
        for memory in self._memory:
            memory.clear()

    def _write(self, row: Row) -> None:
        for table, (group, page_tokens) in zip(row.pages, self._chains[row.chain][1], strict=True):
            for offset, token in enumerate(row.tokens):
                index, slot = divmod(row.start + offset, page_tokens)
                page = table[index]
                if page is not None:
                    self._memory[group].setdefault(page, [None] * page_tokens)[slot] = token

    def _row(self, row: Row) -> RowResult:
        if row.samples == 0:
            return RowResult(tokens=(), logprobs=())
        end = row.start + len(row.tokens)
        read: list[list[int]] = []
        for table, (group, page_tokens) in zip(row.pages, self._chains[row.chain][1], strict=True):
            window = self._windows[group]
            first = 0 if window is None else max(0, end - window)
            tokens = [self._slot(group, table, position, page_tokens) for position in range(first, end)]
            if None in tokens:
                return _fault(f"request {row.request} reads a page that was never written")
            read.append([token for token in tokens if token is not None])
        longest = max(read, key=len)
        if any(longest[len(longest) - len(tokens) :] != tokens for tokens in read):
            return _fault(f"request {row.request} reads different tokens in different KV groups")
        vocab_size = self._chains[row.chain][0]
        drawn = tuple(
            next_token(row.chain, longest[: len(longest) - after], vocab_size) for after in reversed(range(row.samples))
        )
        wanted = row.sampling is not None and row.sampling.logprobs is not None
        return RowResult(
            tokens=drawn, logprobs=tuple(TokenLogprob(logprob=0.0, top=()) for _ in drawn) if wanted else ()
        )

    def _slot(self, group: int, table: tuple[int | None, ...], position: int, page_tokens: int) -> int | None:
        index, slot = divmod(position, page_tokens)
        page = table[index]
        return None if page is None else self._memory[group].get(page, [None] * page_tokens)[slot]


def _fault(message: str) -> RowResult:
    return RowResult(tokens=(), logprobs=(), fault=Fault(scope="row", message=message))
