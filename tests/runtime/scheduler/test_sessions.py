"""Sessions that pause: what they keep, how long, and that nobody else is refused anything for it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.runtime.scheduler.harness import PAGE, Run, alone, limits, request

LONG = list(range(100, 132))  # eight pages of a group


def turn(name, prompt, *, session="s", keep_s=50.0, **fields):
    return replace(request(name, prompt, **fields), session=session, keep_s=keep_s)


def press(run: Run, *, rounds: int = 6) -> None:
    """Other tenants' requests, one after the other, enough to push out everything that is idle."""
    for number in range(rounds):
        prompt = [2000 + 40 * number + i for i in range(40)]
        run.admit(request(f"other {run.now_s} {number}", prompt, app=1, group="other", max_tokens=4))
        run.drain()


def cached(run: Run, name: str, prompt: list[int], **fields) -> int:
    """Prompt tokens that a request finds."""
    run.admit(request(name, prompt, **{"group": "g", "max_tokens": 2, **fields}))
    run.drain()
    return run.ends[name].cached_tokens


@pytest.fixture
def run() -> Run:
    return Run(limits(pages=(40, 40)))


def test_without_a_session_what_is_idle_goes(run: Run):
    run.admit(request("first", LONG, max_tokens=2))
    run.drain()
    press(run)
    assert cached(run, "again", LONG) == 0


def test_a_paused_session_finds_its_pages(run: Run):
    run.admit(turn("first", LONG, max_tokens=2))
    run.drain()
    press(run)
    assert cached(run, "next", [*LONG, 5]) == len(LONG)


def test_its_time_is_over(run: Run):
    run.admit(turn("first", LONG, max_tokens=2, keep_s=5.0))
    run.drain()
    run.now_s += 6.0
    press(run)
    assert cached(run, "next", LONG) == 0


def test_a_session_that_goes_on_lets_go_of_what_it_left(run: Run):
    run.admit(turn("first", LONG, max_tokens=2))
    run.drain()
    run.admit(turn("other branch", [1, 2, 3], max_tokens=2))
    run.drain()
    press(run)
    assert cached(run, "again", LONG) == 0


def test_sessions_of_other_tenants_have_nothing_to_do_with_it(run: Run):
    run.admit(turn("first", LONG, max_tokens=2))
    run.drain()
    run.admit(turn("foreign", [1, 2, 3], app=1, group="other", max_tokens=2))
    run.drain()
    press(run)
    assert cached(run, "peeks", LONG, app=1, group="other") == 0
    assert cached(run, "next", LONG) == len(LONG) - PAGE  # the last token is computed, and with it its page


def test_cancelled_requests_keep_nothing(run: Run):
    run.admit(turn("first", LONG, max_tokens=30))
    for _ in range(4):
        run.step()
    run.take(run.scheduler.cancel("first"))
    press(run)
    assert cached(run, "next", LONG) == 0


def test_a_session_that_a_stop_string_ended_pauses(run: Run):
    run.admit(turn("first", LONG, max_tokens=30))
    for _ in range(4):
        run.step()
    run.take(run.scheduler.cancel("first", is_done=True))
    press(run)
    assert cached(run, "next", LONG) == len(LONG) - PAGE  # the last token is computed, and with it its page


def test_what_is_kept_is_given_up_before_anybody_is_refused(run: Run):
    """Sessions that would keep more than there is; then one request that needs every page of its group."""
    for number in range(12):
        run.admit(turn(f"s{number}", [1000 * number + i for i in range(24)], session=str(number), max_tokens=2))
        run.drain()
    (kept, _, _) = (len(pages._kept) for pages in run.kv._pages)
    assert 0 < kept <= 20, "half of the pages at most"
    own = request("large", list(range(60)), app=1, group="other", max_tokens=4)
    run.admit(own)
    run.drain()
    assert run.tokens["large"] == alone(own)


@pytest.mark.parametrize("seed", range(40))
def test_everyone_is_answered_as_alone(seed: int):
    """Conversations that pause and go on, cancellations, lost time; states of pages are checked after each step."""
    rng = random.Random(seed)
    run = Run(limits(pages=(24, 24)))
    asked, cancelled = {}, set()
    texts = {str(s): [rng.randrange(90) for _ in range(6)] for s in range(5)}
    for number in range(60):
        session = rng.choice(sorted(texts))
        texts[session] = [*texts[session], *(rng.randrange(90) for _ in range(rng.randrange(6)))][:50]
        own = turn(
            f"r{number}", texts[session], session=session, keep_s=rng.choice([1.0, 5.0, 30.0]),
            chain=rng.randrange(6), app=rng.randrange(6), group=f"g{rng.randrange(2)}", max_tokens=rng.randint(1, 6),
        )  # fmt: skip
        asked[own.id] = own
        run.admit(own)
        for _ in range(rng.randrange(4)):
            run.step()
        if rng.random() < 0.1:
            events = run.scheduler.cancel(own.id)
            cancelled |= {event.request for event in events}
            run.take(events)
    run.drain()
    for name, own in asked.items():
        if name not in cancelled:
            assert run.tokens[name] == alone(own), name
    run.now_s += 100.0
    run.scheduler.schedule(run.now_s)
    assert not len(run.scheduler.sessions)
    assert not any(pages._kept or pages._keepers for pages in run.kv._pages)
    run.kv.check_integrity()
