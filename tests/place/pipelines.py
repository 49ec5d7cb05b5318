"""Placement problems of which some models fit no node, and what a placement of them is to one that follows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from blockc.cost import AttentionWork, ChainWork, PlanWork, SegmentWork
from blockc.cost.work import BlockWork, segment_work
from blockc.place import PlaceChain, PlaceDevice, PlaceGroup, Placement, PlaceProblem, PlaceSegment, PlaceSpeed
from blockc.place.before import pipelines_before
from blockc.place.loads import merged
from blockc.place.problem import BeforeCell, PlaceBefore, PlaceBlock, PlacePart
from tests.place.loads import GB, RATES
from tests.place.problems import span, tensor

_STATE_BYTES = 8192


def part(app: str, rate: float, *, priority: int = 0, tpot_ms: int | None = 200) -> PlacePart:
    """What an app expects."""
    return PlacePart(
        app=app, priority=priority, rate_rps=Fraction(rate).limit_denominator(1000), prompt_tokens=256,
        output_tokens=64, tpot_s=None if tpot_ms is None else Fraction(tpot_ms, 1000), span=span(ord(app[0])),
    )  # fmt: skip


def fleet(
    models: Sequence[tuple[str, Sequence[int]]], parts: Sequence[Sequence[PlacePart]], *,
    nodes: Sequence[int] = (2, 2), memory_gb: int = 80, side_bytes: int = 0, link: float | None = None,
) -> PlaceProblem:  # fmt: skip
    """``models``: the name of each one's weights, and gigabytes of its blocks. A name that comes again: on the same.

    ``link``: within nodes; without it no cell has two devices, and hops there take no time.
    """
    bases = dict(models)
    number = {name: index for index, name in enumerate(bases)}
    works = {
        name: [
            BlockWork(
                read_bytes=size * GB, row_read_bytes=0, token_flops=size * GB, row_flops=0, state_bytes=_STATE_BYTES,
                experts=(), pair_flops=(1 << 16,),
            )
            for size in sizes
        ]
        for name, sizes in bases.items()
    }  # fmt: skip
    attention = AttentionWork(window=None, token_bytes=1 << 14, pair_flops=1 << 16)
    tensors = {name: [tensor(f"{name} {at}", size * GB) for at, size in enumerate(own)] for name, own in bases.items()}
    segments: list[SegmentWork] = [segment_work(own) for own in works.values()]
    layers = max(len(sizes) for sizes in bases.values())
    return PlaceProblem(
        devices=tuple(
            PlaceDevice(address=f"n{node}/g{gpu}", kind="a100_80g", memory_bytes=memory_gb * GB, reserve_bytes=0)
            for node, count in enumerate(nodes)
            for gpu in range(count)
        ),
        segments=tuple(PlaceSegment(tensors=frozenset(own), activation_bytes=0) for own in tensors.values()),
        groups=(PlaceGroup(page_bytes=layers << 14, kv_heads=8, page_tokens=16, layers=layers),),
        chains=tuple(
            PlaceChain(
                label=f"m{index}", segments=(number[name],), groups=(0,), side_bytes=side_bytes, max_model_len=1024,
                load=merged(own) if own else None, span=span(40 + index),
                blocks=tuple(
                    PlaceBlock(
                        digest=held.ref.digest, tensors=frozenset({held}), activation_bytes=0, groups=(0,),
                        state_bytes=_STATE_BYTES, work=work, attention=(attention,),
                    )
                    for held, work in zip(tensors[name], works[name], strict=True)
                ),
            )
            for index, ((name, _), own) in enumerate(zip(models, parts, strict=True))
        ),
        max_rows=64, pm_bytes=3, ps_bytes=2, ours_bytes=1, cluster_span=span(1),
        work=PlanWork(
            segments=tuple(segments),
            chains=tuple(
                ChainWork(
                    segments=(number[name],), attention=(attention,) * len(sizes), side_bytes=side_bytes,
                    side_token_flops=side_bytes,
                )
                for name, sizes in models
            ),
        ),
        speeds={"a100_80g": PlaceSpeed(rates=RATES, link_bytes_per_s=link)},
        node_bytes_per_s=12.5e9, node_latency_s=2e-5,
    )  # fmt: skip


def random_fleet(seed: int) -> PlaceProblem:
    """One or two models that fit no device, some with a second fine-tune, and small ones beside them."""
    generator = random.Random(seed)
    models: list[tuple[str, Sequence[int]]] = []
    for name in "ab"[: generator.randint(1, 2)]:
        sizes = [generator.choice([4, 6, 9]) for _ in range(generator.randint(14, 22))]
        models += [(name, sizes)] * generator.randint(1, 2)
    for name in "xyz"[: generator.randint(0, 3)]:
        models.append((name, [generator.choice([2, 8])] * 3))
    loaded = generator.random() < 0.7
    parts = [
        [part(f"{chr(97 + at)}", generator.choice([0.1, 0.4, 1.5]))] if loaded and generator.random() < 0.8 else []
        for at in range(len(models))
    ]
    nodes = generator.choice([(4, 4), (3, 3, 3), (1,) * 8])  # within nodes nothing is known of links, so bytes decide
    return fleet(models, parts, nodes=nodes, side_bytes=generator.choice([0, GB // 10]))


def before_of(given: PlaceProblem, placement: Placement, *, without: frozenset[int] = frozenset()) -> PlaceBefore:
    """As `blockc.place.before` makes it of a plan. ``without``: devices that are gone since."""
    devices = {old: new for new, old in enumerate(d for d in range(len(given.devices)) if d not in without)}
    now = {device: devices.get(device) for device in range(len(given.devices))}
    cells, tensors, chains, widths, parts = [], {}, {}, {}, {}
    for number, instance in enumerate(placement.instances):
        for device in set(instance.devices) & set(devices):
            place, stage = devices[device], instance.stage_of(device)
            if stage is not None:
                parts[place] = stage.first, stage.first + stage.count
            part_ = slice(None) if stage is None else slice(*parts[place])
            used = {t for c in instance.chains for block in given.chains[c].blocks[part_] for t in block.tensors}
            tensors[place] = frozenset(item.ref.digest for item in used)
            chains[place], widths[place] = frozenset(instance.chains), instance.width
        if not instance.stages and set(instance.devices) <= set(devices):
            shares = tuple((chain, placement.routes[chain].shares[number]) for chain in instance.chains)
            cells.append(BeforeCell(devices=tuple(devices[d] for d in instance.devices), chains=shares))
    pipelines = pipelines_before(placement.instances, {c: c for c in range(len(given.chains))}, now)
    return PlaceBefore(
        cells=tuple(cells), tensors=tensors, chains=chains, widths=widths, pipelines=pipelines, parts=parts
    )


def without_devices(given: PlaceProblem, gone: frozenset[int]) -> PlaceProblem:
    """The same models on fewer devices."""
    return replace(given, devices=tuple(own for number, own in enumerate(given.devices) if number not in gone))
