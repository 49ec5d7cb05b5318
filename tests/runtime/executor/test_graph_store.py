"""Which graphs are kept where there are more sizes than room."""

from __future__ import annotations

import random

import pytest

from blockc.ir.recorded import Bucket
from blockc_runtime.executor import graph_store
from blockc_runtime.executor.graph_store import Graph, GraphKey, GraphStore


def key_of(chunked: int, *, first: int = 0, is_whole: bool = True) -> GraphKey:
    bucket = Bucket(singles=16, chunked=chunked)
    return GraphKey(segment=0, first=first, stop=9, is_whole=is_whole, bucket=bucket, tiles=0)


class Asked:
    """Asks a store as executors do."""

    def __init__(self, store: GraphStore) -> None:
        self.store, self.recorded = store, 0

    def __call__(self, key: GraphKey) -> bool:
        """Whether it was replayed."""
        if self.store.find(key) is None:
            if not self.store.pays(key):
                return False
            self.recorded += 1
            self.store.keep(key, Graph(replay=lambda: None, outputs=(None, None)))  # type: ignore[arg-type]
        return True


def test_a_size_with_prompts_is_recorded_when_it_comes_again() -> None:
    ask = Asked(GraphStore(1))
    assert ask(key_of(0))
    assert [ask(key_of(64)) for _ in range(3)] == [False, True, True]
    assert len(ask.store) == ask.recorded == 2


def test_what_is_asked_for_most_is_kept_and_others_are_not_recorded_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graph_store, "_MOST_CHUNKED", 3)
    ask, chosen = Asked(GraphStore(1)), random.Random(0)
    often, rare = [key_of(size) for size in (1, 2, 3)], [key_of(size) for size in range(10, 60)]
    steps = [chosen.choice(often) if chosen.random() < 0.8 else chosen.choice(rare) for _ in range(2000)]
    replayed = sum(map(ask, steps))
    assert replayed > 0.75 * len(steps)
    assert ask.recorded < 40
    assert all(key in ask.store for key in often)
    # What people ask for changes, and so does what is kept.
    monkeypatch.setattr(graph_store, "_AGE", 100)
    others = rare[:3]
    assert sum(ask(chosen.choice(others)) for _ in range(4000)) > 2000
    assert all(key in ask.store for key in others)
    assert len(ask.store) == 3


def test_parts_that_were_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_store, "_MOST_PARTS", 2)
    ask = Asked(GraphStore(1))
    one, two, three = (key_of(0, first=first, is_whole=False) for first in (1, 2, 3))
    for key in (one, two, one, three):
        assert ask(key)
    assert (one in ask.store, two in ask.store, three in ask.store) == (True, False, True)
    assert ask(key_of(0))
    assert len(ask.store) == 3
