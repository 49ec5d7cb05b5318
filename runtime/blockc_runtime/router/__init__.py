"""The router: which instance a request goes to, and what becomes of the KV that another has. Pure, as the scheduler.

In: requests with digests of their prompts' beginnings, news of what has ended, the time as an argument. Out: choices.
No I/O, no clock, no randomness, no torch: a simulator drives it today, a cluster's front later. Invariant: the same
calls give the same choices; a choice takes time in proportion to the route's alternatives and the prompt's digests, and
memory is bounded by the requests under way and by what the instances' caches hold.

One idea a file: `prices` is what an instance and a link are expected to take, `load` what is under way on an instance,
`owners` who has the KV of what, `router` chooses, `planned` makes the one of a plan.
"""

from blockc_runtime.router.owners import PREFIX_TOKENS, prefix_keys
from blockc_runtime.router.planned import planned_prices, planned_route, router_of
from blockc_runtime.router.prices import ChainPrices, InstancePrices, Link, Network
from blockc_runtime.router.router import Ask, Choice, Move, Route, Router

__all__ = [
    "PREFIX_TOKENS",
    "Ask",
    "ChainPrices",
    "Choice",
    "InstancePrices",
    "Link",
    "Move",
    "Network",
    "Route",
    "Router",
    "planned_prices",
    "planned_route",
    "prefix_keys",
    "router_of",
]
