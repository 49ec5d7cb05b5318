"""Steps that nobody waits for, before requests come: kernels are compiled in them, and not while a request waits.

In: a plan, and what runs its steps. Out: nothing but what running them leaves. Prompts stand on pages that are nobody's
yet.
"""

from __future__ import annotations

from collections.abc import Callable

from blockc.plan import ChainEntry, ExecutionPlan
from blockc_runtime.step import Launch, Row, Step, StepResult

# More than a tile of few places; and twice, since a step is recorded when its size comes again.
_TOKENS, _TIMES = 32, 2
# Chains of a kind that are tried: one may be in no slot, or not have been loaded.
_MOST_TRIED = 8


def warm_up(plan: ExecutionPlan, run: Callable[[Step], StepResult]) -> None:
    """Of each path a chain with fine-tunes and one without, as far as it has some that can run."""
    kinds: dict[tuple[str, bool], list[int]] = {}
    for number, chain in enumerate(plan.chains):
        kinds.setdefault((chain.path, bool(chain.side_kinds)), []).append(number)
    for chains in kinds.values():
        for number in chains[:_MOST_TRIED]:
            step = _step(plan, number)
            if all(row.fault is None for _ in range(_TIMES) for row in run(step).rows):
                break


def _step(plan: ExecutionPlan, number: int) -> Step:
    chain = plan.chains[number]
    count = min(_TOKENS, chain.max_model_len, plan.batching.max_batched_tokens)
    tokens = (*chain.virtual_tokens, *[0] * count)[:count]
    row = Row(
        request="", chain=number, tokens=tokens, start=0, pages=_page_tables(plan, chain, count), samples=0,
        sampling=None, output_index=0,
    )  # fmt: skip
    launches = [Launch(instance=0, segment=segment, micro_batch=0, rows=(0,)) for segment in chain.segments]
    return Step(id=0, epoch=0, rows=(row,), launches=tuple(launches))


def _page_tables(plan: ExecutionPlan, chain: ChainEntry, count: int) -> tuple[tuple[int, ...], ...]:
    sizes = [plan.kv_groups[own.group].page_tokens for own in chain.kv]
    return tuple(tuple(range(-(-count // size))) for size in sizes)
