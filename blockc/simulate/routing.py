"""The runtime's router over the instances of a fleet, and KV on its way between them.

In: requests as they arrive and end. Out: the instance of each, and when its KV will be there. Where no app has two
instances nothing is chosen and nothing is kept. Invariant: the router is told what a front would know: never how long
an answer will be, and of caches only what it sent where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from typing import Final

from blockc.cost import TICKS_PER_S, ticks
from blockc.simulate.fleet import Fleet, FleetInstance
from blockc.simulate.instance import Instance, Served
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.request import Request
from blockc_runtime.router import Ask, ChainPrices, InstancePrices, Route, Router, prefix_keys

# Of a decode row, whose attention grows with it.
_CONTEXT_TOKENS: Final = 1024


class Dispatch:
    """``looks`` False: no prompt begins as another does, so that nobody asks who has what."""

    def __init__(self, fleet: Fleet, instances: Sequence[Instance], app_of: Sequence[int], *, looks: bool) -> None:
        self.routed: Counter[str] = Counter()
        self.sent_bytes = 0
        self._fleet = fleet
        self._instances = instances
        self._app_of = app_of
        self._router = router_of(fleet)
        self.looks = looks and self._router is not None
        self._travelling: dict[int, tuple[int, Request, Prefix]] = {}

    def choose(self, number: int, request: Request, at: int) -> tuple[int, int | None]:
        """An instance, and the tick at which the request gets there with KV of another one; None: at once."""
        own = self._fleet.apps[request.app].instances
        if self._router is None:
            return own[0], None
        for index in own:
            for started in self._instances[index].take_started():
                self._router.started(str(started))
        prefix = self._prefix(request.app, request.prompt, number) if self.looks else None
        choice = self._router.route(
            Ask(
                request=request.id,
                app=request.app,
                chain=request.chain,
                prompt_tokens=len(request.prompt),
                keys=() if prefix is None else self._keys(request.chain, prefix),
            ),
            at / TICKS_PER_S,
        )
        self.routed[choice.verdict] += 1
        if choice.source is None or prefix is None:
            return choice.instance, None
        # The router believes; what the source still has is what travels.
        source = self._instances[choice.source]
        tokens = prefix.tokens[: min(source.findable(request.chain, prefix), choice.found_tokens)]
        self.sent_bytes += len(tokens) * source.fleet.pricer.kv_bytes(request.chain)
        self._travelling[number] = choice.instance, request, Prefix(request.isolation_group, tokens)
        return choice.instance, at + ticks(choice.transfer_s)

    def delivered(self, number: int) -> Request | None:
        """A request whose KV has arrived just now; None: it was not on its way."""
        found = self._travelling.pop(number, None)
        if found is None:
            return None
        instance, request, prefix = found
        if prefix.tokens:
            self._instances[instance].adopt(f"sent {number}", request.chain, prefix)
        return request

    def ended(self, served: Served, said: Sequence[int]) -> None:
        """A request has ended. ``said``: its prompt and answer, if more of its conversation will come."""
        app = self._app_of[served.number]
        if self._router is None:
            return
        keys: tuple[bytes, ...] = ()
        if said and self.looks and served.refusal is None:
            keys = self._keys(self._fleet.apps[app].chain, self._prefix(app, said, served.number))
        self._router.ended(str(served.number), output_tokens=served.tokens, keys=keys)

    def _prefix(self, app: int, tokens: Sequence[int], number: int) -> Prefix:
        own = self._fleet.apps[app]
        group = own.isolation_group if self._fleet.caches else f"request {number}"
        virtual = self._instances[own.instances[0]].fleet.limits.chains[own.chain].virtual_tokens
        return Prefix(group, [*virtual, *tokens])

    def _keys(self, chain: int, prefix: Prefix) -> tuple[bytes, ...]:
        return prefix_keys(prefix, self._instances[0].fleet.limits.chains[chain].domains)


def router_of(fleet: Fleet) -> Router | None:
    """A router for a fleet; None where nothing is left to choose."""
    if all(len(app.instances) == 1 for app in fleet.apps):
        return None
    routes = {app.chain: Route(instances=app.instances, shares=app.shares) for app in fleet.apps}
    running: dict[int, set[int]] = {}
    for chain, route in routes.items():
        for instance in route.instances:
            running.setdefault(instance, set()).add(chain)
    prices = [_prices(item, running.get(index, set())) for index, item in enumerate(fleet.instances)]
    return Router(prices, routes, fleet.network, apps=len(fleet.apps), is_blind=fleet.is_blind)


def _prices(instance: FleetInstance, chains: Set[int]) -> InstancePrices:
    pricer, limits = instance.pricer, instance.limits
    own = {chain: _chain_prices(instance, chain) for chain in sorted(chains)}
    tokens = [
        min(limits.groups[group].pages * limits.groups[group].page_tokens for group in limits.chains[chain].groups)
        for chain in own
        if limits.chains[chain].groups
    ]
    return InstancePrices(
        step_s=pricer.constant(0) / TICKS_PER_S,
        segment_s=tuple(pricer.affine(segment, samples=True).set_up_s for segment in range(pricer.segments)),
        chains=own,
        places=limits.max_rows,
        cache_tokens=max(tokens, default=0),
    )


def _chain_prices(instance: FleetInstance, chain: int) -> ChainPrices:
    """Prompts as if they filled whole steps; rows at a context of middling length."""
    pricer = instance.pricer
    chunk = instance.limits.max_batched_tokens
    row = pricer.constant(1) - pricer.constant(0) + pricer.attention(chain, _CONTEXT_TOKENS, 1)
    row_s = row / TICKS_PER_S
    row_s += sum(pricer.affine(segment, samples=True).token_s for segment in pricer.segments_of(chain))
    return ChainPrices(
        segments=pricer.segments_of(chain),
        set_up_s=pricer.side_read(chain) / TICKS_PER_S,
        prompt_s=(pricer.launches({chain: chunk}, {}) + pricer.attention(chain, 0, chunk)) / chunk / TICKS_PER_S,
        row_s=row_s,
        kv_bytes=pricer.kv_bytes(chain),
    )
