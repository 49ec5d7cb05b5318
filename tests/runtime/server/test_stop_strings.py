"""Stop strings across any cut of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc_runtime.server.stop_strings import StopStrings

texts = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """The slow way: the first position at which a stop string ends, the longest one there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return end, max(ending, key=len)
    return None


def feed(state: StopStrings, text: str, cuts: list[int]) -> str:
    shown, start = "", 0
    for cut in [*sorted(cuts), len(text)]:
        shown += state.feed(text[start:cut])
        start = max(start, cut)
    return shown if state.found else shown + state.finish()


@given(texts, stops, st.lists(st.integers(0, 30), max_size=10), st.booleans())
def test_equals_a_search_in_the_whole(text, stops, cuts, keep):
    state = StopStrings(stops, keep=keep)
    shown = feed(state, text, cuts)
    found = first_stop(text, stops)
    if found is None:
        assert (shown, state.found) == (text, None)
    else:
        end, stop = found
        assert (shown, state.found) == (text[: end if keep else end - len(stop)], stop)


@given(texts, stops)
def test_holds_back_no_more_than_a_beginning_of_a_stop_string(text, stops):
    state = StopStrings(stops, keep=False)
    shown = "".join(state.feed(character) for character in text)
    if state.found is None:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_is_taken_after_the_end():
    state = StopStrings(["x"], keep=False)
    assert state.feed("abxcd") == "ab"
    assert state.feed("more") == ""
    assert state.finish() == ""


def test_without_stop_strings_text_passes():
    state = StopStrings([], keep=False)
    assert state.feed("abc") == "abc"
    assert state.finish() == ""


@pytest.mark.parametrize("count", [10_000, 20_000])
def test_cost_does_not_grow_with_what_almost_matched(count):
    state = StopStrings(["a" * 200 + "b"] * 4, keep=False)
    shown = sum(len(state.feed("a" * 10)) for _ in range(count // 10))
    assert shown == count - 200
