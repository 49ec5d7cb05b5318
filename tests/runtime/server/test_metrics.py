"""What an engine counts, seen across its restarts."""

from __future__ import annotations

from blockc_runtime.counts import Counts
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.server.metrics import EngineStats, Metrics
from blockc_runtime.wire.messages import Stats


def series(metrics: Metrics) -> dict[str, float]:
    lines = (line.split() for line in metrics.text(None).decode().splitlines() if not line.startswith("#"))
    return {line[0].removeprefix("blockc:"): float(line[1]) for line in lines if len(line) == 2}


def pages(*, evicted: int = 0) -> PageUsage:
    return PageUsage(total=9, free=2, idle=3, held=4, saved=1, evicted=evicted)


def engine(*groups: PageUsage, counts: Counts | None = None) -> EngineStats:
    return EngineStats(
        device="box/d0", stats=Stats(unfinished=0, steps=0, pages=groups, counts=counts or Counts())
    )  # fmt: skip


def test_counters_of_an_engine_never_fall():
    metrics = Metrics()
    for preemptions, evicted in ((3, 5), (4, 5), (1, 2)):  # the last are those of a new engine
        counts = Counts(
            preemptions=preemptions, side_loads=2 * preemptions, block_loads=evicted, block_evictions=preemptions,
            residency_wait_s=preemptions / 2,
        )  # fmt: skip
        metrics.observe_stats([engine(pages(evicted=evicted), counts=counts)])
    found = series(metrics)
    assert (found["block_loads_total"], found["block_evictions_total"]) == (5 + 2, 4 + 1)
    assert found["residency_wait_seconds_total"] == (4 + 1) / 2
    assert found["num_preemptions_total"] == 4 + 1
    assert found["side_loads_total"] == 2 * (4 + 1)
    assert found['kv_page_evictions_total{group="0"}'] == 5 + 2


def test_pages_that_only_a_cache_holds_are_free():
    metrics = Metrics()
    metrics.observe_stats([engine(pages())])
    found = series(metrics)
    names = ("kv_pages", "kv_pages_free", "kv_pages_cached", "kv_pages_saved")
    assert [found[f'{name}{{device="box/d0",group="0"}}'] for name in names] == [9, 5, 3, 1]


def test_groups_that_went_with_a_plan_have_no_pages():
    metrics = Metrics()
    metrics.observe_stats([engine(pages(), pages())])
    metrics.observe_stats([engine(pages())])
    groups = {name.partition("{")[2] for name in series(metrics) if name.startswith("kv_pages")}
    assert groups == {'device="box/d0",group="0"}'}


def test_engines_are_told_apart_and_what_they_count_is_added():
    """The second has the plan's third KV group only, and calls it its first."""
    metrics = Metrics()
    first = engine(pages(evicted=2), pages(), counts=Counts(preemptions=3))
    second = EngineStats(
        device="box/d1", stats=engine(pages(evicted=5), counts=Counts(preemptions=4)).stats, groups=(2,)
    )  # fmt: skip
    for _ in range(2):
        metrics.observe_stats([first, second])
    found = series(metrics)
    assert found["num_preemptions_total"] == 7
    assert {name for name in found if name.startswith("kv_pages{")} == {
        'kv_pages{device="box/d0",group="0"}', 'kv_pages{device="box/d0",group="1"}',
        'kv_pages{device="box/d1",group="2"}',
    }  # fmt: skip
    assert found['kv_page_evictions_total{group="2"}'] == 5
    assert found['engine_requests{device="box/d1"}'] == 0
    metrics.forget("box/d1")
    metrics.forget("box/d1")
    assert not [name for name in series(metrics) if "box/d1" in name]
