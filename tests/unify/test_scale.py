"""A thousand LoRA apps on ten bases: what the plan weighs, and that unifying takes time in proportion."""

from __future__ import annotations

import time

from blockc.plan import dump_plan
from blockc.unify import unify
from tests.support.synthetic import fleet_plan, lora_fleet


def _layer(app: int) -> int:
    """The first layer that an adapter acts on: all depths occur, so that KV groups are cut at every layer."""
    return app * 7 % 32


def test_the_plan_of_a_thousand_apps_stays_under_five_megabytes():
    """Even where the adapters begin at all 32 layers, so that every layer is a KV group of its own."""
    plan = fleet_plan(lora_fleet(apps=1000, first_layer=_layer, targets=["self_attn.k_proj"]))
    assert len(plan.chains) == 1000
    assert len(plan.kv_groups) == 32
    assert len(plan.segments) == 10, "adapters cut no segment"
    assert len(dump_plan(plan)) < 5_000_000


def test_ten_times_the_apps_take_about_ten_times_as_long():
    """A ratio, since machines are shared: ten is proportional, a hundred would be pairs of chains."""
    fleets = [lora_fleet(apps=count, first_layer=_layer) for count in (40, 400)]
    times = []
    for fleet in fleets:
        begin = time.process_time()
        unify(fleet, together=[frozenset(fleet)])
        times.append(time.process_time() - begin)
    assert times[1] < 25 * times[0], times
