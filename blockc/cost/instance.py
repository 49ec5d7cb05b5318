"""What an instance is expected to take, for a router that chooses between several.

In: the work and rates of an instance, and how much its caches hold. Out: prices in seconds. Plans carry them where a
request has a choice, and the simulator makes them by the same function, so that both route alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from blockc.cost.price import TICKS_PER_S, StepPricer
from blockc.cost.rates import DeviceRates
from blockc.cost.work import plan_work
from blockc.plan import ChainPricesEntry, ExecutionPlan, InstanceEntry, PricesEntry

# Of a decode row, whose attention grows with it.
_CONTEXT_TOKENS: Final = 1024
# Of a device of which nothing is known, about an H100's. Where all are alike, only proportions matter to who chooses.
_NOMINAL: Final = DeviceRates(flops_per_s=5e14, bytes_per_s=2.5e12)


def instance_prices(pricer: StepPricer, cached: Mapping[int, Sequence[int]], *, step_tokens: int) -> PricesEntry:
    """``cached``: by chain that it runs the tokens that each of its KV groups can hold; ``step_tokens``: of a step."""
    segments = sorted({segment for chain in cached for segment in pricer.segments_of(chain)})
    return PricesEntry(
        step_s=pricer.constant(0) / TICKS_PER_S,
        segment_s={segment: pricer.affine(segment, samples=True).set_up_s for segment in segments},
        chains={chain: _chain_prices(pricer, chain, step_tokens) for chain in sorted(cached)},
        cache_tokens=max((min(tokens) for tokens in cached.values() if tokens), default=0),
    )


def _chain_prices(pricer: StepPricer, chain: int, step_tokens: int) -> ChainPricesEntry:
    """Prompts as if they filled whole steps; rows at a context of middling length."""
    row = pricer.constant(1) - pricer.constant(0) + pricer.attention(chain, _CONTEXT_TOKENS, 1)
    row_s = row / TICKS_PER_S
    row_s += sum(pricer.affine(segment, samples=True).token_s for segment in pricer.segments_of(chain))
    prompt = pricer.launches({chain: step_tokens}, {}) + pricer.attention(chain, 0, step_tokens)
    return ChainPricesEntry(
        set_up_s=pricer.side_read(chain) / TICKS_PER_S,
        prompt_s=prompt / step_tokens / TICKS_PER_S,
        row_s=row_s,
        kv_bytes=pricer.kv_bytes(chain),
    )


def with_prices(plan: ExecutionPlan, rates_of: Callable[[str, int], DeviceRates | None]) -> ExecutionPlan:
    """The plan with the prices of its instances, if some chain runs on several.

    ``rates_of``: of so many devices of a kind together. None: nothing is known of it: one alone counts as a GPU of
    middling speed; where several are one instance, no instance has prices.
    """
    if all(len(route.alternatives) == 1 for route in plan.routes):
        return plan
    work, priced = plan_work(plan), []
    for instance in plan.instances:
        rates = rates_of(plan.devices[instance.devices[0]].kind, instance.width)
        if rates is None and instance.width == 1:
            rates = _NOMINAL
        if rates is None:
            return plan
        prices = instance_prices(
            StepPricer(work, rates), _cached(plan, instance), step_tokens=plan.batching.max_batched_tokens
        )
        priced.append(instance.model_copy(update={"prices": prices}))
    return plan.model_copy(update={"instances": tuple(priced)})


def _cached(plan: ExecutionPlan, instance: InstanceEntry) -> dict[int, list[int]]:
    return {
        chain: [
            instance.kv_pages.get(kv.group, 0) * plan.kv_groups[kv.group].page_tokens for kv in plan.chains[chain].kv
        ]
        for chain in instance.chains
    }
