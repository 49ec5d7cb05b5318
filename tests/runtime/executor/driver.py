"""A scheduler for tests: gives rows their pages and runs requests to the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from blockc.plan import ExecutionPlan
from blockc.zoo import Zoo
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.request import Sampling
from blockc_runtime.step import Launch, Row, RowResult, SlotFill, Step
from tests.support.device import DEVICE


@dataclass(slots=True)
class Sequence_:
    """A request in progress: its tokens, how many are cached, its page tables."""

    chain: int
    tokens: list[int]
    pages: list[list[int | None]]
    cached: int = 0
    drawn: int = 0
    logits: list[Tensor] = field(default_factory=list)


class Driver:
    """Runs rows on an executor; pages are handed out in a scrambled order."""

    def __init__(self, plan: ExecutionPlan, zoo: Zoo, *, seed: int = 0) -> None:
        self.plan = plan
        self.tapped: dict[int, Tensor] = {}
        self.executor = TorchExecutor(plan, zoo, device=DEVICE, logits_tap=lambda row, logits: self._tap(row, logits))
        shuffled = torch.Generator().manual_seed(seed)
        self.free = [
            torch.randperm(plan.instances[0].kv_pages[group], generator=shuffled).tolist()
            for group in range(len(plan.kv_groups))
        ]
        self.steps = self.recorded = 0
        self.fills: tuple[SlotFill, ...] = ()  # of the next step

    def _tap(self, row: int, logits: Tensor) -> None:
        self.tapped[row] = logits.float().cpu().clone()

    def start(self, chain: int, prompt: Sequence[int]) -> Sequence_:
        groups = len(self.plan.chains[chain].kv)
        return Sequence_(chain=chain, tokens=list(prompt), pages=[[] for _ in range(groups)])

    def row(self, sequence: Sequence_, count: int, *, samples: int = 0, sampling: Sampling | None = None) -> Row:
        """The next ``count`` tokens as a row; allocates what pages they need."""
        end = sequence.cached + count
        for table, kv in zip(sequence.pages, self.plan.chains[sequence.chain].kv, strict=True):
            page_tokens = self.plan.kv_groups[kv.group].page_tokens
            while len(table) * page_tokens < end:
                table.append(self.free[kv.group].pop())
        return Row(
            request="r",
            chain=sequence.chain,
            tokens=tuple(sequence.tokens[sequence.cached : end]),
            start=sequence.cached,
            pages=tuple(tuple(table) for table in sequence.pages),
            samples=samples,
            sampling=sampling or (Sampling() if samples else None),
            output_index=sequence.drawn,
        )

    def step(self, rows: Sequence[Row]) -> tuple[RowResult, ...]:
        """All rows through their segments, each segment once."""
        launches = []
        for segment in range(len(self.plan.segments)):
            members = tuple(
                i
                for i, row in enumerate(rows)
                if 0 <= row.chain < len(self.plan.chains) and segment in self.plan.chains[row.chain].segments
            )
            if members:
                launches.append(Launch(instance=0, segment=segment, micro_batch=0, rows=members))
        self.steps += 1
        self.tapped = {}
        step = Step(id=self.steps, epoch=0, rows=tuple(rows), launches=tuple(launches), fills=self.fills)
        self.fills = ()
        self.executor.submit(step)
        result = self.executor.collect()
        assert result.step == self.steps
        self.recorded += result.launched.recorded
        return result.rows

    def advance(self, work: Sequence[tuple[Sequence_, int]]) -> tuple[RowResult, ...]:
        """One step over (sequence, tokens); sequences that reach their end draw a token."""
        rows = []
        for sequence, count in work:
            done = sequence.cached + count == len(sequence.tokens)
            rows.append(self.row(sequence, count, samples=int(done)))
        results = self.step(rows)
        for i, ((sequence, count), result) in enumerate(zip(work, results, strict=True)):
            assert result.fault is None, result.fault
            sequence.cached += count
            if result.tokens:
                sequence.tokens += result.tokens
                sequence.drawn += len(result.tokens)
                sequence.logits.append(self.tapped[i][-1])
        return results

    def generate(self, sequences: Sequence[Sequence_], count: int, *, chunk: int = 1000) -> None:
        """All sequences together until each has drawn ``count`` tokens."""
        while True:
            work = [(s, min(chunk, len(s.tokens) - s.cached)) for s in sequences if s.drawn < count]
            if not work:
                return
            self.advance(work)


def new_zoo(path: Path) -> Zoo:
    return Zoo(path, create=True)
