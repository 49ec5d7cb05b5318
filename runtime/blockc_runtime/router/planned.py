"""The router that a plan asks for: where it leaves a choice between instances, and by the prices that it carries.

In: a plan. Out: a router, or None. KV does not travel: an engine has no way to another one's pages so far.
"""

from __future__ import annotations

from blockc.diag import refuse
from blockc.plan import ExecutionPlan, PricesEntry, RouteEntry
from blockc_runtime.router.prices import ChainPrices, InstancePrices, Network
from blockc_runtime.router.router import Route, Router


def router_of(plan: ExecutionPlan) -> Router | None:
    """A router for a plan; None where nothing is left to choose. Raises `DiagnosticError` (BC905) without prices."""
    if all(len(route.alternatives) == 1 for route in plan.routes):
        return None
    segments = tuple(chain.segments for chain in plan.chains)
    prices = []
    for instance in plan.instances:
        if instance.prices is None:
            refuse(
                "BC905",
                "the plan does not say what its instances take, so nobody can choose between them",
                "compile the spec again",
            )
        prices.append(planned_prices(instance.prices, segments, len(plan.segments), places=instance.max_rows))
    nodes = tuple(plan.devices[instance.devices[0]].node for instance in plan.instances)
    routes = {route.chain: planned_route(route) for route in plan.routes}
    return Router(prices, routes, Network(nodes=nodes), apps=len(plan.apps))


def planned_prices(
    entry: PricesEntry, segments: tuple[tuple[int, ...], ...], segment_count: int, *, places: int
) -> InstancePrices:
    """``segments``: by chain of the plan; ``segment_count``: of the plan, of which others than its own cost nothing."""
    return InstancePrices(
        step_s=entry.step_s,
        segment_s=tuple(entry.segment_s.get(segment, 0.0) for segment in range(segment_count)),
        chains={
            chain: ChainPrices(
                segments=segments[chain], set_up_s=own.set_up_s, prompt_s=own.prompt_s, row_s=own.row_s,
                kv_bytes=own.kv_bytes,
            )
            for chain, own in sorted(entry.chains.items())
        },
        places=places,
        cache_tokens=entry.cache_tokens,
    )  # fmt: skip


def planned_route(route: RouteEntry) -> Route:
    """The part of its requests that is meant for each instance that answers, alike if none is said; and that reads."""
    found: dict[int, float] = {}
    for way, weight in zip(route.alternatives, route.weights or (1.0,) * len(route.alternatives), strict=True):
        found[way[0]] = found.get(way[0], 0.0) + weight
    answer = {item: part for item, part in sorted(found.items()) if item not in route.readers}
    read = {item: part for item, part in sorted(found.items()) if item in route.readers}
    return Route(
        instances=tuple(answer), shares=tuple(answer.values()), readers=tuple(read), reader_shares=tuple(read.values())
    )
