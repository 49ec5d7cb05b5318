"""Steps that nobody waits for, before requests come: kernels are compiled in them, and not while a request waits.

In: a plan. Out: steps with a prompt of one base and of one fine-tune of each path, on pages that are nobody's yet.
"""

from __future__ import annotations

from collections.abc import Iterator

from blockc.plan import ChainEntry, ExecutionPlan
from blockc_runtime.step import Launch, Row, Step

# More than a tile of few places; and twice, since a step is recorded when its size comes again.
_TOKENS, _TIMES = 32, 2


def first_steps(plan: ExecutionPlan) -> Iterator[Step]:
    """Of each path a chain with fine-tunes and one without, as far as it has them."""
    chains = {(chain.path, bool(chain.side_kinds)): number for number, chain in reversed([*enumerate(plan.chains)])}
    for number in chains.values():
        for _ in range(_TIMES):
            yield _step(plan, number)


def _step(plan: ExecutionPlan, number: int) -> Step:
    chain = plan.chains[number]
    count = min(_TOKENS, chain.max_model_len)
    row = Row(
        request="", chain=number, tokens=(0,) * count, start=0, pages=_pages(plan, chain, count), samples=0,
        sampling=None, output_index=0,
    )  # fmt: skip
    launches = [Launch(instance=0, segment=segment, micro_batch=0, rows=(0,)) for segment in chain.segments]
    return Step(id=0, epoch=0, rows=(row,), launches=tuple(launches))


def _pages(plan: ExecutionPlan, chain: ChainEntry, count: int) -> tuple[tuple[int, ...], ...]:
    sizes = [plan.kv_groups[own.group].page_tokens for own in chain.kv]
    return tuple(tuple(range(-(-count // size))) for size in sizes)
