"""`Router`: chooses an instance for each request, and says what becomes of the KV that another one has.

In: requests, and news of them. Out: choices. Each alternative is judged by when the request's last token is expected:
prompts before it, a place, its own prompt as far as nobody has computed it, its answer. Where another instance (the
*owner*) has more of the prompt's KV than the candidate, the candidate either computes it again or is sent it, whichever
is sooner; then it owns it, too. So a request waits at the owner, is computed again, or is handed over, by price.
Of equals the one goes first that has been given least for its share of the route's traffic, then the lower index.

Where a route has *readers* (DistServe, arXiv 2401.09670), a prompt goes to one of them, and when its first token is
there its request goes on (`pass_on`) to an instance that answers, with its KV. Each of them could do either: where all
of one sort have gone out of service, the others do both.

A request under way moves (`hand_over`) where its instance goes out of service, or (`review`) where that pays: it ends
sooner by a margin, its way included, and those on both instances lose less by it, all together, than it gains. A move
for that reason is its only one, so nothing moves to and fro.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from blockc_runtime.router.load import InstanceLoad
from blockc_runtime.router.owners import PREFIX_TOKENS, Key, Owners
from blockc_runtime.router.prices import InstancePrices, Network

# Tokens of an answer of an app that has not given any yet.
_FIRST_GUESS: Final = 128.0
# Answers by which an app's expected length is as good as it gets; from then on it follows.
_REMEMBERED: Final = 64
# Of what a request still takes where it is, a move must spare this part.
_MARGIN: Final = 0.25

Verdict = Literal["fresh", "owner", "recompute", "transfer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Instances that run a whole chain, with the part of its traffic that each is meant for (any scale, not all 0).

    ``readers``: other ones, which read prompts for them; empty: who answers has read.
    """

    instances: tuple[int, ...]
    shares: tuple[float, ...]
    readers: tuple[int, ...] = ()
    reader_shares: tuple[float, ...] = ()

    @property
    def all(self) -> tuple[int, ...]:
        """Every instance that runs the chain."""
        return (*self.instances, *self.readers)

    @property
    def is_sound(self) -> bool:
        """Whether somebody answers, nobody does both, and each sort has its shares."""
        sorts = ((self.instances, self.shares), (self.readers, self.reader_shares))
        return (
            bool(self.instances)
            and len(set(self.all)) == len(self.all)
            and all(len(own) == len(shares) and (not own or sum(shares) > 0) for own, shares in sorts)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request: who it is, its app and chain, its prompt's length and the keys of its beginnings (`prefix_keys`)."""

    request: str
    app: int
    chain: int
    prompt_tokens: int
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Where a request goes. ``found_tokens``: of its prompt need no computing once it is there.

    ``verdict``: ``fresh``: nobody has anything of it; ``owner``: nobody has more of it than this instance;
    ``transfer``: ``source`` sends what it has, which takes ``transfer_s`` from now on, the wait for the link included;
    ``recompute``: somebody has more, and computing it again is sooner. ``end_s``: from now to the last token, as
    expected.
    """

    instance: int
    verdict: Verdict
    found_tokens: int
    end_s: float
    source: int | None = None
    transfer_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A request that leaves ``source``. ``gain_s``: seconds that are spared, by all on both instances together."""

    request: str
    source: int
    choice: Choice
    gain_s: float


@dataclass(frozen=True, slots=True)
class _Stay:
    """A request under way, where it is, and whether it has moved there because that pays."""

    ask: Ask
    instance: int
    has_moved: bool = False


@dataclass(slots=True)
class _App:
    """Answers of one app."""

    answers: int = 0
    mean_tokens: float = _FIRST_GUESS

    def learn(self, tokens: int) -> None:
        self.answers = min(self.answers + 1, _REMEMBERED)
        self.mean_tokens += (tokens - self.mean_tokens) / self.answers


class Router:
    """See the module's text. ``routes``: by chain. ``is_blind``: it knows nothing of KV, to see what that is worth."""

    def __init__(
        self,
        prices: Sequence[InstancePrices],
        routes: dict[int, Route],
        network: Network,
        *,
        apps: int,
        is_blind: bool = False,
    ) -> None:
        for chain, route in routes.items():
            if not route.is_sound:
                raise ValueError(f"chain {chain} has no route, or no shares: {route}")
        self._prices = tuple(prices)
        self._routes = routes
        self._network = network
        self._is_blind = is_blind
        self._load = tuple(InstanceLoad(item) for item in prices)
        self._owners = Owners([item.cache_tokens for item in prices])
        self._apps = [_App() for _ in range(apps)]
        self._asks: dict[str, _Stay] = {}  # those under way
        # Of each chain and instance those that may move, in the order in which they came.
        self._movable: dict[tuple[int, int], dict[str, None]] = {}
        self._sent: dict[tuple[int, int], int] = {}  # requests by chain and instance
        self._link_free_s: dict[tuple[int, int], float] = {}
        self._leaving: set[int] = set()
        self._failed: set[int] = set()

    def route(self, ask: Ask, now_s: float) -> Choice:
        """Choose for a new request. Raises ValueError if it is under way already."""
        if ask.request in self._asks:
            raise ValueError(f"request {ask.request!r} is under way already")
        choice = self._choose(ask, now_s, ask.prompt_tokens, without=(), reads=True)
        self._put(ask, choice, ask.prompt_tokens, now_s)
        return choice

    def pass_on(self, request: str, now_s: float, *, emitted: int) -> Choice | None:
        """A request that has its first tokens goes where it is answered; None: it is there, or there is nobody else."""
        stay = self._asks[request]
        route, tokens = self._routes[stay.ask.chain], stay.ask.prompt_tokens + emitted
        if stay.instance not in route.readers or all(item in self._leaving for item in route.instances):
            return None
        choice = self._choose(stay.ask, now_s, tokens, without=(stay.instance, *self._leaving), holder=stay.instance)
        self._leave(request)
        self._put(stay.ask, choice, tokens, now_s, has_moved=stay.has_moved)
        return choice

    def hand_over(self, request: str, now_s: float, *, emitted: int) -> Choice | None:
        """Move a request that has ``emitted`` tokens of its answer; None: there is nowhere else for it to go.

        Its pages travel with it, or the other instance computes them again: those of an instance that has failed.
        """
        stay = self._asks[request]
        here, tokens = stay.instance, stay.ask.prompt_tokens + emitted
        closed = self._failed if here in self._failed else self._leaving
        if all(item == here or item in closed for item in self._routes[stay.ask.chain].all):
            return None
        has_started = self._load[here].has_started(request)
        holder = None if here in self._failed or not has_started else here
        choice = self._choose(
            stay.ask, now_s, tokens, without=(here, *self._failed), holder=holder, reads=not has_started and not emitted
        )
        self._leave(request)
        self._put(stay.ask, choice, tokens, now_s, has_moved=stay.has_moved)
        return choice

    def review(self, now_s: float, emitted: Mapping[str, int]) -> tuple[Move, ...]:
        """Moves that pay, one from each instance at most, so that the next see what it changes; they are made.

        ``emitted``: tokens of the answers so far, of all requests that may move; others stay.
        """
        moves = []
        for here in range(len(self._load)):
            best = max(self._moves(here, now_s, emitted), key=lambda move: move.gain_s, default=None)
            if best is not None:
                ask = self._asks[best.request].ask
                self._leave(best.request)
                self._put(ask, best.choice, ask.prompt_tokens + emitted[best.request], now_s, has_moved=True)
                moves.append(best)
        return tuple(moves)

    def _moves(self, here: int, now_s: float, emitted: Mapping[str, int]) -> Iterator[Move]:
        """Of each chain the request that came last, if its best alternative pays."""
        load = self._load[here]
        for chain, route in self._routes.items():
            request = next((item for item in reversed(self._movable.get((chain, here), {})) if item in emitted), None)
            if request is None or here in route.readers:
                continue
            ask = self._asks[request].ask
            # However long an answer is already, as much is expected to come as at its beginning.
            output = self._apps[ask.app].mean_tokens
            tokens = ask.prompt_tokens + emitted[request]
            # Who runs here must not wait for pages there.
            others = [
                item
                for item in route.instances
                if item != here and item not in self._leaving and self._load[item].holds(tokens + output)
            ]
            if not others:
                continue
            stays_s = load.left_s(request, output_tokens=output)
            holder = here if load.has_started(request) else None
            closed = [item for item in route.all if item not in others]
            choice = self._choose(ask, now_s, tokens, without=closed, holder=holder)
            there, own = self._load[choice.instance], self._prices[choice.instance].chains[chain]
            spared_s = stays_s - choice.end_s
            if spared_s <= _MARGIN * stays_s:
                continue
            others_s = (load.rows - 1) * load.relief_s(chain) * output
            others_s -= there.rows * (there.step_s(chain) - there.now_s) * output
            if holder is None:
                others_s += (load.rows - 1) * tokens * self._prices[here].chains[chain].prompt_s
            others_s -= there.rows * (tokens - choice.found_tokens) * own.prompt_s
            if spared_s + others_s > 0:
                yield Move(request=request, source=here, choice=choice, gain_s=spared_s + others_s)

    def started(self, request: str) -> None:
        """It has its first token: its prompt has been read."""
        if (found := self._asks.get(request)) is not None:
            self._load[found.instance].started(request)

    def ended(self, request: str, *, output_tokens: int, keys: tuple[Key, ...] = ()) -> None:
        """It has ended. ``keys``: of all its tokens, where more of its conversation may come."""
        stay = self._asks[request]
        self._leave(request)
        del self._asks[request]
        if output_tokens:
            self._apps[stay.ask.app].learn(output_tokens)
        if keys and not self._is_blind:
            self._owners.note(stay.instance, keys)

    def drain(self, instance: int) -> None:
        """It gets no new requests where there is another for them; what it has can still be handed over."""
        self._leaving.add(instance)

    def fail(self, instance: int) -> None:
        """As `drain`, and nothing of what it had can be had any more."""
        self._leaving.add(instance)
        self._failed.add(instance)
        self._owners.forget(instance)

    def back(self, instance: int, *, is_empty: bool) -> None:
        """It takes requests (again). ``is_empty``: its cache was lost."""
        self._leaving.discard(instance)
        self._failed.discard(instance)
        if is_empty:
            self._owners.forget(instance)

    @property
    def requests(self) -> tuple[int, ...]:
        """Requests under way, by instance."""
        return tuple(item.requests for item in self._load)

    def known_prefixes(self, instance: int) -> int:
        """Beginnings that an instance is credited with: for the bounds on memory."""
        return self._owners.count(instance)

    def _choose(
        self,
        ask: Ask,
        now_s: float,
        tokens: int,
        *,
        without: Collection[int],
        holder: int | None = None,
        reads: bool = False,
    ) -> Choice:
        """The best alternative. ``holder``: has the KV of all ``tokens`` but the last. ``reads``: of a prompt."""
        route = self._routes[ask.chain]
        keys = () if self._is_blind else ask.keys
        found = {item: self._owners.found(item, keys) * PREFIX_TOKENS for item in route.all} if keys else {}
        if holder is not None:
            found[holder] = max(0, tokens - 1)
        owner = max(found, key=lambda item: (found[item], -item), default=None)
        candidates = self._open(route, without, reads=reads)
        share = dict(zip(route.all, (*route.shares, *route.reader_shares), strict=True))

        def rank(choice: Choice) -> tuple[float, float, int]:
            item = choice.instance
            given = self._sent.get((ask.chain, item), 0)
            return choice.end_s, given / share[item] if share[item] > 0 else float("inf"), item

        return min((self._judge(ask, now_s, tokens, item, found, owner) for item in candidates), key=rank)

    def _open(self, route: Route, without: Collection[int], *, reads: bool) -> list[int]:
        """Those of the wanted sort that are in service, else the others; if none is, those that only leave."""
        sorts = (route.readers, route.instances) if reads else (route.instances, route.readers)
        for closed in (self._leaving, self._failed, ()):
            for sort in sorts:
                if found := [item for item in sort if item not in without and item not in closed]:
                    return found
        return []

    def _output(self, ask: Ask, instance: int) -> float:
        """Tokens of an answer that an instance gives: a reader's is one."""
        route = self._routes[ask.chain]
        goes_on = instance in route.readers and not all(item in self._leaving for item in route.instances)
        return 1.0 if goes_on else self._apps[ask.app].mean_tokens

    def _judge(
        self, ask: Ask, now_s: float, tokens: int, instance: int, found: dict[int, int], owner: int | None
    ) -> Choice:
        """What one instance would make of a request: with what it has, or with what the owner sends."""
        load, own = self._load[instance], self._prices[instance].chains[ask.chain]
        output = self._output(ask, instance)
        step_s = load.step_s(ask.chain)
        wait_s = load.wait_s(step_s, output_tokens=output)
        has = found.get(instance, 0)
        answer_s = output * step_s
        end_s = wait_s + (tokens - has) * own.prompt_s + answer_s
        most = 0 if owner is None else found[owner]
        if owner is None or most <= has:
            return Choice(instance=instance, verdict="owner" if most else "fresh", found_tokens=has, end_s=end_s)
        travel_s = self._travel_s(owner, instance, (most - has) * own.kv_bytes, now_s)
        if travel_s is not None:
            sent_s = max(wait_s, travel_s) + (tokens - most) * own.prompt_s + answer_s
            if sent_s < end_s:
                return Choice(
                    instance=instance, verdict="transfer", found_tokens=most, end_s=sent_s, source=owner,
                    transfer_s=travel_s,
                )  # fmt: skip
        return Choice(instance=instance, verdict="recompute", found_tokens=has, end_s=end_s)

    def _travel_s(self, source: int, target: int, nbytes: int, now_s: float) -> float | None:
        """From now until the target has them; None: there is no way."""
        link = self._network.link(source, target)
        if link is None:
            return None
        wait_s = max(0.0, self._link_free_s.get((source, target), 0.0) - now_s)
        return wait_s + link.latency_s + nbytes / link.bytes_per_s

    def _leave(self, request: str) -> None:
        stay = self._asks[request]
        self._load[stay.instance].drop(request)
        self._movable.get((stay.ask.chain, stay.instance), {}).pop(request, None)

    def _put(self, ask: Ask, choice: Choice, tokens: int, now_s: float, *, has_moved: bool = False) -> None:
        """A request is on its way to where it was chosen to go."""
        instance = choice.instance
        if choice.source is not None:
            self._link_free_s[choice.source, instance] = now_s + choice.transfer_s
        self._asks[ask.request] = _Stay(ask, instance, has_moved)
        if not has_moved:
            self._movable.setdefault((ask.chain, instance), {})[ask.request] = None
        self._load[instance].take(
            ask.request,
            chain=ask.chain,
            unread_tokens=tokens - choice.found_tokens,
            tokens=tokens + self._output(ask, instance),
        )
        self._sent[ask.chain, instance] = self._sent.get((ask.chain, instance), 0) + 1
        if ask.keys and not self._is_blind:
            self._owners.note(instance, ask.keys)
