"""The router: by price, within its route, the same again, and bounded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.router import (
    PREFIX_TOKENS,
    Ask,
    ChainPrices,
    Choice,
    InstancePrices,
    Link,
    Network,
    Route,
    Router,
    prefix_keys,
)

FAST, SLOW = Link(bytes_per_s=1e12, latency_s=1e-6), Link(bytes_per_s=1e3, latency_s=1e-3)
CHAINS = {
    0: ChainPrices(segments=(0, 1), set_up_s=0.0, prompt_s=1e-4, row_s=1e-5, kv_bytes=1000),
    1: ChainPrices(segments=(0, 2), set_up_s=1e-4, prompt_s=1e-4, row_s=1e-5, kv_bytes=1000),
    2: ChainPrices(segments=(3,), set_up_s=0.0, prompt_s=5e-4, row_s=2e-5, kv_bytes=4000),
}
PRICES = InstancePrices(
    step_s=1e-4, segment_s=(1e-3, 1e-3, 2e-3, 3e-3), chains=CHAINS, places=4, cache_tokens=8 * PREFIX_TOKENS
)


def router(copies: int = 2, *, link: Link | None = FAST, shares=None, blind: bool = False, without=()) -> Router:
    instances = tuple(index for index in range(copies) if index not in without)
    own = tuple((shares or [1.0] * copies)[index] for index in instances)
    return Router(
        [PRICES] * copies,
        {chain: Route(instances=instances, shares=own) for chain in CHAINS},
        Network(nodes=tuple(f"n{index}" for index in range(copies)), within=link, between=link),
        apps=3,
        is_blind=blind,
    )


def keys(first: int, count: int = 4) -> tuple[bytes, ...]:
    tokens = [first * 10_000 + place for place in range(count * PREFIX_TOKENS + 1)]
    return prefix_keys(Prefix("group", tokens), ("domain",))


def ask(name: str, *, chain: int = 0, tokens: int = 600, of: tuple[bytes, ...] = ()) -> Ask:
    return Ask(request=name, app=chain, chain=chain, prompt_tokens=tokens, keys=of)


@dataclass(frozen=True)
class Event:
    kind: str
    number: int
    chain: int
    tokens: int
    first: int
    pause_s: float


events = st.lists(
    st.builds(
        Event,
        kind=st.sampled_from(
            ["route", "route", "route", "started", "ended", "hand_over", "review", "drain", "fail", "back"]
        ),
        number=st.integers(0, 40),
        chain=st.integers(0, 2),
        tokens=st.integers(1, 900),
        first=st.integers(0, 3),
        pause_s=st.floats(0, 0.2, allow_subnormal=False),
    ),
    max_size=60,
)


def play(own: Router, script: list[Event], copies: int) -> list[Choice | None]:
    """What the router says to a script; of each request's events only those make sense that come in order."""
    found: list[Choice | None] = []
    at: dict[int, int] = {}
    leaving: set[int] = set()
    failed: set[int] = set()
    moved_before: set[int] = set()
    now_s = 0.0
    for number, event in enumerate(script):
        now_s += event.pause_s
        under_way = sorted(at)
        if event.kind == "route":
            of = keys(event.first)[: max(0, event.tokens - 1) // PREFIX_TOKENS]
            choice = own.route(ask(str(number), chain=event.chain, tokens=event.tokens, of=of), now_s)
            found.append(choice)
            at[number] = choice.instance
            assert choice.instance not in leaving or len(leaving) == copies
            assert 0 <= choice.found_tokens < event.tokens
            assert choice.end_s > 0
            assert (choice.source is not None) == (choice.verdict == "transfer") == (choice.transfer_s > 0)
            assert choice.source != choice.instance
        elif event.kind in ("drain", "fail"):
            (own.drain if event.kind == "drain" else own.fail)(event.number % copies)
            leaving.add(event.number % copies)
            if event.kind == "fail":
                failed.add(event.number % copies)
        elif event.kind == "review":
            review(own, now_s, dict.fromkeys(under_way, event.tokens), at, moved_before, leaving)
        elif event.kind == "back":
            own.back(event.number % copies, is_empty=event.first == 0)
            leaving.discard(event.number % copies)
            failed.discard(event.number % copies)
        elif under_way:
            request = under_way[event.number % len(under_way)]
            if event.kind == "started":
                own.started(str(request))
            elif event.kind == "ended":
                own.ended(str(request), output_tokens=event.tokens, keys=keys(event.first, 6))
                del at[request]
            else:
                moved = own.hand_over(str(request), now_s, emitted=event.tokens)
                found.append(moved)
                closed = failed if at[request] in failed else leaving
                assert (moved is None) == (closed | {at[request]} == set(range(copies)))
                if moved is not None:
                    assert moved.instance != at[request]
                    at[request] = moved.instance
        assert own.requests == tuple(sum(where == index for where in at.values()) for index in range(copies))
        assert all(own.known_prefixes(index) <= 8 for index in range(copies))
    for request in sorted(at):
        own.ended(str(request), output_tokens=1)
    assert own.requests == (0,) * copies
    return found


@settings(max_examples=150, deadline=None)
@given(script=events, copies=st.integers(1, 4), link=st.sampled_from([None, FAST, SLOW]), blind=st.booleans())
def test_any_script_is_answered_within_the_route_and_the_same_again(script, copies, link, blind) -> None:
    once = play(router(copies, link=link, blind=blind), script, copies)
    assert once == play(router(copies, link=link, blind=blind), script, copies)
    for choice in once:
        if choice is not None and (link is None or blind):
            assert choice.verdict != "transfer" or blind
    if blind:
        routed = [choice for choice in once if choice is not None and choice.verdict == "owner"]
        assert not routed or any(event.kind == "hand_over" for event in script)


@settings(max_examples=80, deadline=None)
@given(script=events.map(lambda own: [item for item in own if item.kind in ("route", "started", "ended")]))
def test_an_alternative_that_is_not_taken_decides_nothing(script) -> None:
    """The last choice of a script stays, whichever other alternative had not been there for it."""
    if not any(item.kind == "route" for item in script):
        return
    while script[-1].kind != "route":
        script = script[:-1]
    full = play(router(3), script, 3)[-1]
    owners = {full.instance, full.source}
    for left_out in {0, 1, 2} - owners:
        own = router(3)
        play_all(own, script[:-1])
        own._routes = {chain: _less(route, left_out) for chain, route in own._routes.items()}
        event, number = script[-1], len(script) - 1
        of = keys(event.first)[: max(0, event.tokens - 1) // PREFIX_TOKENS]
        again = own.route(
            ask(str(number), chain=event.chain, tokens=event.tokens, of=of), sum(item.pause_s for item in script)
        )
        assert again.instance == full.instance
        assert again.end_s == pytest.approx(full.end_s, rel=1e-9) or again.verdict != full.verdict


def review(own: Router, now_s: float, emitted: dict[int, int], at: dict[int, int], before: set[int], leaving) -> None:
    """Moves are from where requests are to where they end sooner, once for each."""
    stays_s = {
        request: own._load[at[request]].left_s(
            str(request), output_tokens=own._apps[own._asks[str(request)].ask.app].mean_tokens
        )
        for request in emitted
    }
    moves = own.review(now_s, {str(request): tokens for request, tokens in emitted.items()})
    for index, move in enumerate(moves):
        request, choice = int(move.request), move.choice
        assert move.source == at[request] != choice.instance
        assert choice.instance not in leaving
        assert move.gain_s > 0
        assert index or choice.end_s < stays_s[request]  # the next ones find others at their place
        assert request not in before
        before.add(request)
        at[request] = choice.instance
    assert len({move.source for move in moves}) == len(moves)


def test_reviews_move_what_came_last_to_who_is_idle_and_not_back() -> None:
    own = router(2)
    own.drain(1)
    for number in range(4):
        own.route(ask(str(number), chain=2, tokens=50), 0.0)
        own.started(str(number))
    assert own.review(1.0, {}) == ()
    own.back(1, is_empty=False)
    emitted = {str(number): 10 for number in range(4)}
    assert own.review(1.0, emitted) == ()  # a row more costs less than the launches that it would make there
    for number in range(4):
        own.route(ask(f"other {number}", chain=0, tokens=50), 1.0)
        own.started(f"other {number}")
    assert {own._asks[f"other {number}"].instance for number in range(4)} == {1}
    own.drain(1)
    own.route(ask("late", chain=0, tokens=50), 1.0)
    own.started("late")
    own.ended("other 0", output_tokens=100)
    own.back(1, is_empty=False)
    (move,) = own.review(2.0, {**emitted, "late": 10})
    assert (move.request, move.source, move.choice.instance, move.choice.verdict) == ("late", 0, 1, "transfer")
    own.drain(1)
    assert own.review(3.0, {**emitted, "late": 10}) == ()
    own.back(1, is_empty=False)
    assert own.review(3.0, {**emitted, "late": 10}) == ()


def play_all(own: Router, script: list[Event]) -> None:
    """As `play`, with everything left under way."""
    at: list[int] = []
    now_s = 0.0
    for number, event in enumerate(script):
        now_s += event.pause_s
        if event.kind == "route":
            of = keys(event.first)[: max(0, event.tokens - 1) // PREFIX_TOKENS]
            own.route(ask(str(number), chain=event.chain, tokens=event.tokens, of=of), now_s)
            at.append(number)
        elif at:
            request = at[event.number % len(at)]
            if event.kind == "started":
                own.started(str(request))
            else:
                own.ended(str(request), output_tokens=event.tokens, keys=keys(event.first, 6))
                at.remove(request)


def _less(route: Route, left_out: int) -> Route:
    kept = [item for item in zip(route.instances, route.shares, strict=True) if item[0] != left_out]
    return Route(instances=tuple(item for item, _ in kept), shares=tuple(share for _, share in kept))


def test_equal_requests_are_spread_evenly() -> None:
    own = router(3)
    for number in range(9):
        own.route(ask(str(number)), 0.0)
    assert own.requests == (3, 3, 3)


def test_shares_decide_between_equals() -> None:
    own = router(2, shares=[3.0, 1.0])
    given_ = [0, 0]
    for number in range(40):
        given_[own.route(ask(str(number)), float(number)).instance] += 1
        own.ended(str(number), output_tokens=20)
    assert given_ == [30, 10]


def test_prompts_that_wait_count_more_than_requests() -> None:
    own = router(2)
    own.route(ask("long", tokens=5000), 0.0)
    for number in range(3):
        assert own.route(ask(str(number), tokens=10), 0.0).instance == 1
    own.started("long")
    assert own.route(ask("then", tokens=10), 0.1).instance == 0


def test_a_chain_goes_where_its_segments_are_launched_anyway() -> None:
    own = router(2)
    own.route(ask("a", chain=0, tokens=10), 0.0)
    own.route(ask("b", chain=2, tokens=10), 0.0)
    assert own.route(ask("c", chain=2, tokens=10), 0.0).instance == 1
    assert own.route(ask("d", chain=1, tokens=10), 0.0).instance == 0


def test_the_owner_of_a_prefix_is_asked_again() -> None:
    own = router(3)
    first = own.route(ask("a", of=keys(1)), 0.0)
    own.ended("a", output_tokens=10, keys=keys(1))
    own.route(ask("other", of=keys(2)), 1.0)
    again = own.route(ask("b", of=keys(1)), 1.0)
    assert (first.verdict, again.verdict) == ("fresh", "owner")
    assert again.instance == first.instance
    assert again.found_tokens == 4 * PREFIX_TOKENS
    assert again.end_s < first.end_s


@pytest.mark.parametrize(("link", "verdict"), [(FAST, "transfer"), (SLOW, "recompute"), (None, "recompute")])
def test_a_busy_owner_hands_over_or_is_left_by_price(link: Link | None, verdict: str) -> None:
    own = router(2, link=link)
    owner = own.route(ask("a", of=keys(1)), 0.0).instance
    own.ended("a", output_tokens=10, keys=keys(1))
    own.drain(1 - owner)
    for number in range(4):  # all places of the owner
        own.route(ask(f"busy {number}", chain=2, tokens=3000), 1.0)
    own.back(1 - owner, is_empty=False)
    choice = own.route(ask("b", of=keys(1)), 1.0)
    assert choice.instance == 1 - owner
    assert choice.verdict == verdict
    assert choice.found_tokens == (4 * PREFIX_TOKENS if verdict == "transfer" else 0)
    if verdict == "transfer":
        assert choice.source == owner
        own.ended("b", output_tokens=10)
        assert own.route(ask("c", of=keys(1)), 2.0).verdict == "owner"  # it has it now, too


def test_what_travels_waits_for_its_link() -> None:
    own = router(2, link=Link(bytes_per_s=1e8, latency_s=0.0))
    owner = own.route(ask("a", of=keys(1)), 0.0).instance
    own.ended("a", output_tokens=10, keys=keys(1))
    own.drain(owner)
    first, second = (own.route(ask(name, of=keys(1)[:2] if name == "c" else keys(1)), 5.0) for name in "bc")
    assert first.verdict == "transfer"
    assert first.transfer_s == pytest.approx(4 * PREFIX_TOKENS * 1000 / 1e8)
    assert second.verdict == "owner"  # the first one has brought it
    own.back(1 - owner, is_empty=True)
    third = own.route(ask("d", of=keys(1)), 5.0)
    assert third.transfer_s == pytest.approx(2 * first.transfer_s)


def test_a_request_under_way_is_handed_over() -> None:
    own = router(3)
    here = own.route(ask("a"), 0.0).instance
    own.started("a")
    moved = own.hand_over("a", 0.5, emitted=50)
    assert moved is not None
    assert (moved.verdict, moved.source) == ("transfer", here)
    assert moved.found_tokens == 649
    assert own.requests[here] == 0
    assert own.requests[moved.instance] == 1
    own.ended("a", output_tokens=50)
    slow = router(2, link=SLOW)
    slow.route(ask("a"), 0.0)
    slow.started("a")
    moved = slow.hand_over("a", 0.5, emitted=50)
    assert moved is not None
    assert (moved.verdict, moved.found_tokens) == ("recompute", 0)
    alone = router(1)
    alone.route(ask("a"), 0.0)
    assert alone.hand_over("a", 0.5, emitted=50) is None
    assert alone.requests == (1,)


def test_who_is_blind_sees_no_owner() -> None:
    own = router(2, blind=True)
    for number in range(6):
        assert own.route(ask(str(number), of=keys(1)), float(number)).verdict == "fresh"
        own.ended(str(number), output_tokens=10, keys=keys(1))
    assert own.known_prefixes(0) == own.known_prefixes(1) == 0


def test_keys_tell_tokens_groups_and_domains_apart() -> None:
    tokens = list(range(3 * PREFIX_TOKENS))
    own = prefix_keys(Prefix("g", tokens), ("d",))
    assert len(own) == 2  # the last token is always computed
    assert own == prefix_keys(Prefix("g", [*tokens, 7]), ("d",))[:2]
    assert own[0] == prefix_keys(Prefix("g", [*tokens[:-1], 9]), ("d",))[0]
    for other in (
        prefix_keys(Prefix("h", tokens), ("d",)),
        prefix_keys(Prefix("g", tokens), ("e",)),
        prefix_keys(Prefix("g", [5, *tokens[1:]]), ("d",)),
    ):
        assert not set(own) & set(other)


def test_wrong_use_is_refused() -> None:
    own = router()
    own.route(ask("a"), 0.0)
    with pytest.raises(ValueError, match="under way"):
        own.route(ask("a"), 0.0)
    with pytest.raises(ValueError, match="no route"):
        Router([PRICES], {0: Route(instances=(), shares=())}, Network(nodes=("n",)), apps=1)
    with pytest.raises(ValueError, match="not a link"):
        replace(FAST, bytes_per_s=0.0)


READERS = Route(instances=(0, 1), shares=(1.0, 1.0), readers=(2, 3), reader_shares=(1.0, 1.0))
steps = st.lists(
    st.tuples(st.sampled_from(["route", "route", "pass_on", "drain", "fail", "back", "ended"]), st.integers(0, 20)),
    max_size=50,
)


def with_readers(link: Link | None = FAST) -> Router:
    network = Network(nodes=("n",) * 4, within=link, between=None)
    return Router([PRICES] * 4, dict.fromkeys(CHAINS, READERS), network, apps=3)


@settings(max_examples=100, deadline=None)
@given(script=steps, link=st.sampled_from([None, FAST, SLOW]))
def test_prompts_go_to_readers_and_answers_to_the_others_as_long_as_they_are_there(script, link) -> None:
    own = with_readers(link)
    at: dict[str, int] = {}
    leaving: set[int] = set()
    for number, (kind, which) in enumerate(script):
        open_ = {sort: set(sort) - leaving for sort in (READERS.instances, READERS.readers)}
        name = sorted(at)[which % len(at)] if at else ""
        if kind == "route":
            found = own.route(ask(str(number), chain=which % 3), float(number)).instance
            assert found in (open_[READERS.readers] or open_[READERS.instances] or range(4))
            at[str(number)] = found
        elif kind in ("drain", "fail"):
            (own.drain if kind == "drain" else own.fail)(which % 4)
            leaving.add(which % 4)
        elif kind == "back":
            own.back(which % 4, is_empty=False)
            leaving.discard(which % 4)
        elif name and kind == "pass_on":
            own.started(name)
            choice = own.pass_on(name, float(number), emitted=1)
            assert (choice is None) == (at[name] not in READERS.readers or not open_[READERS.instances])
            if choice is not None:
                assert choice.instance in open_[READERS.instances]
                assert choice.verdict == "transfer" if link is FAST else link or choice.verdict == "recompute"
                assert choice.source in (None, at[name])
                at[name] = choice.instance
        elif name:
            own.ended(name, output_tokens=5)
            del at[name]
        assert own.requests == tuple(sum(where == index for where in at.values()) for index in range(4))


def test_a_reader_is_judged_by_prompts_alone() -> None:
    own = with_readers()
    for number in range(8):  # answers of any length leave the readers free
        assert own.route(ask(str(number)), 0.0).instance in READERS.readers
        own.started(str(number))
        assert own.pass_on(str(number), 0.0, emitted=1)
    assert own.requests == (4, 4, 0, 0)


@pytest.mark.parametrize("readers", [(0,), (2, 2)])
def test_who_answers_does_not_read_for_others(readers: tuple[int, ...]) -> None:
    route = replace(READERS, readers=readers, reader_shares=(1.0,) * len(readers))
    with pytest.raises(ValueError, match="no route"):
        Router([PRICES] * 4, {0: route}, Network(nodes=("n",) * 4), apps=1)
