"""The runtime's router over the instances of a fleet, and KV and requests on their way between them.

In: requests as they arrive and end. Out: the instance of each, and when its KV will be there. Where no app has two
instances nothing is chosen and nothing is kept. Invariant: the router is told what a front would know: never how long
an answer will be, and of caches only what it sent where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, replace

from blockc.cost import TICKS_PER_S, instance_prices, ticks
from blockc.simulate.fleet import Fleet, FleetInstance
from blockc.simulate.instance import Instance, Left, Served, answer_token
from blockc.simulate.moves import LOST, HandOver, Outage, Why
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.request import Request
from blockc_runtime.router import Ask, Choice, InstancePrices, Route, Router, planned_prices, prefix_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A request on its way to an instance, with the KV of a prefix. ``left``: what became of it elsewhere."""

    instance: int
    request: Request
    prefix: Prefix
    left: Left | None = None


class Dispatch:
    """``looks`` False: no prompt begins as another does, so that nobody asks who has what."""

    def __init__(self, fleet: Fleet, instances: Sequence[Instance], app_of: Sequence[int], *, looks: bool) -> None:
        self.routed: Counter[str] = Counter()
        self.sent_bytes: Counter[int] = Counter()  # by app
        self.hand_overs: list[HandOver] = []
        self._fleet = fleet
        self._instances = instances
        self._app_of = app_of
        self._router = router_of(fleet)
        self.looks = looks and self._router is not None
        self._travelling: dict[int, Delivery] = {}
        self._moved: Counter[int] = Counter()  # times, by number
        self._out: dict[int, Outage] = {}

    def choose(self, number: int, request: Request, at: int) -> tuple[int, int | None]:
        """An instance, and the tick at which the request gets there with KV of another one; None: at once."""
        app = self._fleet.apps[request.app]
        if self._router is None:
            return app.instances[0], None
        self._tell_started(self._router, app.all)
        prefix = self._prefix(request.app, request.prompt, number) if self.looks else None
        choice = self._router.route(
            Ask(
                request=request.id,
                app=request.app,
                chain=request.chain,
                prompt_tokens=len(self._virtual(request.app)) + len(request.prompt),
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
        self.sent_bytes[request.app] += len(tokens) * source.fleet.pricer.kv_bytes(request.chain)
        self._travelling[number] = Delivery(
            instance=choice.instance, request=request, prefix=Prefix(request.isolation_group, tokens)
        )
        return choice.instance, at + ticks(choice.transfer_s)

    def delivered(self, number: int) -> Delivery | None:
        """A request that arrives with its KV just now; None: it was not on its way."""
        found = self._travelling.pop(number, None)
        if found is not None and found.prefix.tokens:
            # Under its own name: where pages are counted, none finds those of others.
            self._instances[found.instance].adopt(found.request.id, found.request.chain, found.prefix)
        return found

    def on_the_way(self) -> list[tuple[int, int]]:
        """Numbers of the requests that no instance has, and how many tokens each has been given."""
        return [(number, item.left.tokens) for number, item in self._travelling.items() if item.left is not None]

    def review(self, members: Collection[int], at: int) -> list[HandOver]:
        """Requests that move because that pays."""
        if self._router is None:
            return []
        self._tell_started(self._router, sorted(members))
        names: dict[str, str] = {}
        emitted: dict[str, int] = {}
        for index in sorted(members):
            for name, number, tokens in self._instances[index].here():
                names[str(number)], emitted[str(number)] = name, tokens
        moves = self._router.review(at / TICKS_PER_S, emitted)
        return [self._move(names[item.request], item.source, item.choice, "load") for item in moves]

    def pass_on(self, instance: int) -> Iterator[HandOver]:
        """Requests whose prompts an instance has read for others go there."""
        if self._router is None:
            return
        self._tell_started(self._router, (instance,))
        for name, number, tokens in self._instances[instance].here():
            if tokens:
                choice = self._router.pass_on(str(number), self._instances[instance].now / TICKS_PER_S, emitted=tokens)
                if choice is not None:
                    yield self._move(name, instance, choice, "read")

    def take_out(self, outage: Outage) -> None:
        """An instance goes out of service; what it has is still there (`turn_out`)."""
        self._out[outage.instance] = outage
        if self._router is not None and outage.is_failure:
            self._router.fail(outage.instance)
        elif self._router is not None:
            self._router.drain(outage.instance)

    def has_failed(self, instance: int) -> bool:
        """Whether it is out of service for good."""
        return instance in self._out and self._out[instance].is_failure

    def turn_out(self, instance: int, at: int) -> Iterator[HandOver | Served]:
        """What is on an instance that is out of service goes elsewhere, or ends where it has failed."""
        outage = self._out.get(instance)
        if outage is None:
            return
        if self._router is not None:
            self._tell_started(self._router, (instance,))
        for name, number, tokens in self._instances[instance].here():
            choice = None
            if self._router is not None:
                choice = self._router.hand_over(str(number), at / TICKS_PER_S, emitted=tokens)
            if choice is not None:
                yield self._move(name, instance, choice, "failure" if outage.is_failure else "drain")
            elif outage.is_failure:
                left = self._instances[instance].leave(name)
                yield Served(
                    number=number, end=left.at, first=left.first, tokens=left.tokens,
                    cached_tokens=left.cached_tokens or 0, refusal=LOST,
                )  # fmt: skip

    def _move(self, name: str, source: int, choice: Choice, why: Why) -> HandOver:
        """A request leaves, as one whose answer has begun; what it has of KV goes with it if it is sent."""
        left = self._instances[source].leave(name)
        number, was = left.number, left.request
        self._moved[number] += 1
        request = replace(
            was,
            id=f"{number}.{self._moved[number]}",
            prompt=was.prompt + (answer_token(number),) * (left.tokens - was.emitted),
            emitted=left.tokens,
        )
        prefix = self._prefix(was.app, request.prompt, number)
        tokens = 0
        if choice.source == source:
            tokens = left.computed
        elif choice.source is not None:
            tokens = min(self._instances[choice.source].findable(was.chain, prefix), choice.found_tokens)
        self._travelling[number] = Delivery(
            instance=choice.instance,
            request=request,
            prefix=Prefix(request.isolation_group, prefix.tokens[:tokens]),
            left=left,
        )
        nbytes = tokens * self._instances[source].fleet.pricer.kv_bytes(was.chain)
        self.sent_bytes[was.app] += nbytes
        done = HandOver(
            number=number, source=source, target=choice.instance, left=left.at,
            there=left.at + ticks(choice.transfer_s), nbytes=nbytes, verdict=choice.verdict, why=why,
        )  # fmt: skip
        self.hand_overs.append(done)
        return done

    def _tell_started(self, router: Router, instances: Collection[int]) -> None:
        for index in instances:
            for started in self._instances[index].take_started():
                router.started(str(started))

    def ended(self, served: Served, said: Sequence[int]) -> None:
        """A request has ended. ``said``: its prompt and answer, if more of its conversation will come."""
        app = self._app_of[served.number]
        if self._router is None:
            return
        keys: tuple[bytes, ...] = ()
        if said and self.looks and served.refusal is None:
            keys = self._keys(self._fleet.apps[app].chain, self._prefix(app, said, served.number))
        tokens = served.tokens if served.refusal is None else 0
        self._router.ended(str(served.number), output_tokens=tokens, keys=keys)

    def _prefix(self, app: int, tokens: Sequence[int], number: int) -> Prefix:
        own = self._fleet.apps[app]
        group = own.isolation_group if self._fleet.caches else f"request {number}"
        return Prefix(group, [*self._virtual(app), *tokens])

    def _virtual(self, app: int) -> tuple[int, ...]:
        own = self._fleet.apps[app]
        return self._instances[own.instances[0]].fleet.limits.chains[own.chain].virtual_tokens

    def _keys(self, chain: int, prefix: Prefix) -> tuple[bytes, ...]:
        return prefix_keys(prefix, self._instances[0].fleet.limits.chains[chain].domains)


def router_of(fleet: Fleet) -> Router | None:
    """A router for a fleet; None where nothing is left to choose."""
    if all(len(app.all) == 1 for app in fleet.apps):
        return None
    routes = {
        app.chain: Route(
            instances=app.instances, shares=app.shares, readers=app.readers, reader_shares=app.reader_shares
        )
        for app in fleet.apps
    }
    running: dict[int, set[int]] = {}
    for chain, route in routes.items():
        for instance in route.all:
            running.setdefault(instance, set()).add(chain)
    prices = [_prices(item, running.get(index, set())) for index, item in enumerate(fleet.instances)]
    return Router(prices, routes, fleet.network, apps=len(fleet.apps), is_blind=fleet.is_blind)


def _prices(instance: FleetInstance, chains: Set[int]) -> InstancePrices:
    pricer, limits = instance.pricer, instance.limits
    cached = {
        chain: [limits.groups[group].pages * limits.groups[group].page_tokens for group in limits.chains[chain].groups]
        for chain in sorted(chains)
    }
    return planned_prices(
        instance_prices(pricer, cached, step_tokens=limits.max_batched_tokens),
        tuple(chain.segments for chain in limits.chains),
        pricer.segments,
        places=limits.max_rows,
    )
