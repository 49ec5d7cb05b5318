"""What unifying a thousand LoRA apps costs, without weights: ``python benchmarks/unify.py``.

Ten bases of 32 layers, LoRAs on all seven linears, made-up digests. CPU time beside two baselines of the same run:
hashing what identifies each adapter, which no way of unifying can avoid, and a tenth of the apps. ``all depths``: the
adapters begin at every layer, so that each layer is a KV group of its own, the worst case for the plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from blockc.ir import side_digest
from blockc.plan import dump_plan
from blockc.unify import unify
from tests.support.synthetic import fleet_plan, lora_fleet

T = TypeVar("T")
CASES: dict[str, Callable[[int], int]] = {"all layers": lambda app: 0, "all depths": lambda app: app * 7 % 32}


def timed(work: Callable[[], T]) -> tuple[float, T]:
    begin_s = time.process_time()
    result = work()
    return time.process_time() - begin_s, result


def main() -> None:
    for name, first_layer in CASES.items():
        small, fleet = (lora_fleet(apps=apps, first_layer=first_layer) for apps in (100, 1000))
        sides = [side for chain in fleet.values() for side in chain.sides]
        hashing_s, _ = timed(lambda: [side_digest(side) for side in sides])  # noqa: B023 - called at once
        small_s, _ = timed(lambda: unify(small, together=[frozenset(small)]))  # noqa: B023
        unify_s, graph = timed(lambda: unify(fleet, together=[frozenset(fleet)]))  # noqa: B023
        plan = fleet_plan(fleet)
        print(
            f"1,000 apps, {name}: unify {unify_s:.2f} s, {unify_s / hashing_s:.1f} times hashing their adapters, "
            f"{unify_s / small_s:.1f} times 100 apps; {len(graph.segments)} segments, {len(graph.groups)} KV groups; "
            f"plan {len(dump_plan(plan)) / 1e6:.2f} MB"
        )


if __name__ == "__main__":
    main()
