"""What an engine counts, seen across its restarts."""

from __future__ import annotations

from blockc_runtime.counts import Counts
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.server.metrics import Metrics


def series(metrics: Metrics) -> dict[str, float]:
    lines = (line.split() for line in metrics.text(None).decode().splitlines() if not line.startswith("#"))
    return {line[0].removeprefix("blockc:"): float(line[1]) for line in lines if len(line) == 2}


def test_counters_of_an_engine_never_fall():
    metrics = Metrics()
    for preemptions, evicted in ((3, 5), (4, 5), (1, 2)):  # the last are those of a new engine
        metrics.observe_counts(
            Counts(
                preemptions=preemptions, side_loads=2 * preemptions, block_loads=evicted, block_evictions=preemptions,
                residency_wait_s=preemptions / 2,
            )
        )  # fmt: skip
        metrics.observe_pages([PageUsage(total=9, free=2, idle=3, held=4, saved=1, evicted=evicted)])
    found = series(metrics)
    assert (found["block_loads_total"], found["block_evictions_total"]) == (5 + 2, 4 + 1)
    assert found["residency_wait_seconds_total"] == (4 + 1) / 2
    assert found["num_preemptions_total"] == 4 + 1
    assert found["side_loads_total"] == 2 * (4 + 1)
    assert found['kv_page_evictions_total{group="0"}'] == 5 + 2


def test_pages_that_only_a_cache_holds_are_free():
    metrics = Metrics()
    metrics.observe_pages([PageUsage(total=9, free=2, idle=3, held=4, saved=1, evicted=0)])
    found = series(metrics)
    names = ("kv_pages", "kv_pages_free", "kv_pages_cached", "kv_pages_saved")
    assert [found[f'{name}{{group="0"}}'] for name in names] == [9, 5, 3, 1]


def test_groups_that_went_with_a_plan_have_no_pages():
    metrics = Metrics()
    pages = PageUsage(total=9, free=2, idle=3, held=4, saved=1, evicted=0)
    metrics.observe_pages([pages, pages])
    metrics.observe_pages([pages])
    groups = {name.partition("{")[2] for name in series(metrics) if name.startswith("kv_pages")}
    assert groups == {'group="0"}'}
