"""Random placement problems with expected load, and packings of which the best is known."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

from blockc.cost import AttentionWork, ChainWork, DeviceRates, PlanWork, SegmentWork
from blockc.place import PlaceChain, PlaceDevice, PlaceGroup, PlaceLoad, PlaceProblem, PlaceRule, PlaceSpeed
from blockc.place.traffic.packing import PARTS, Block, CellKind, Group, PackedCell, Packing, packing_problem
from tests.place.problems import segment, span

GB = 10**9
RATES = DeviceRates(flops_per_s=150e12, bytes_per_s=1.6e12)


def segment_work(nbytes: int) -> SegmentWork:
    return SegmentWork(
        blocks=8, read_bytes=nbytes, row_read_bytes=0, token_flops=nbytes, row_flops=0, reduces=4, reduce_bytes=4096
    )


def load(
    rate: float, *, tpot_ms: int | None = 50, ttft_ms: int | None = None, prompt: int = 512, output: int = 128,
    line: int = 20,
) -> PlaceLoad:  # fmt: skip
    return PlaceLoad(
        rate_rps=Fraction(rate).limit_denominator(1000),
        prompt_tokens=Fraction(prompt),
        output_tokens=Fraction(output),
        tpot_s=None if tpot_ms is None else Fraction(tpot_ms, 1000),
        ttft_s=None if ttft_ms is None else Fraction(ttft_ms, 1000),
        span=span(line),
        slo_span=span(line + 100),
    )


def loaded(
    sizes_gb: list[float],
    paths: list[tuple[int, ...]],
    loads: list[PlaceLoad | None],
    *,
    nodes: tuple[int, ...] = (2,),
    memory_gb: int = 80,
    rules: tuple[PlaceRule, ...] = (),
    link: float | None = 300e9,
    side_bytes: int = 0,
) -> PlaceProblem:
    """Models over shared segments of these sizes, on devices alike."""
    segments = [segment(f"s{index}", int(size * GB)) for index, size in enumerate(sizes_gb)]
    return PlaceProblem(
        devices=tuple(
            PlaceDevice(address=f"n{node}/g{gpu}", kind="a100_80g", memory_bytes=memory_gb * GB, reserve_bytes=0)
            for node, count in enumerate(nodes)
            for gpu in range(count)
        ),
        segments=tuple(segments),
        groups=(PlaceGroup(page_bytes=1 << 20, kv_heads=8, page_tokens=16, layers=8),),
        chains=tuple(
            PlaceChain(
                label=f"m{number}", segments=path, groups=(0,), side_bytes=side_bytes, max_model_len=1024, load=own,
                span=span(40 + number),
            )
            for number, (path, own) in enumerate(zip(paths, loads, strict=True))
        ),
        max_rows=64,
        pm_bytes=3,
        ps_bytes=2,
        ours_bytes=1,
        cluster_span=span(1),
        work=PlanWork(
            segments=tuple(segment_work(int(size * GB)) for size in sizes_gb),
            chains=tuple(
                ChainWork(
                    segments=path,
                    attention=(AttentionWork(window=None, token_bytes=1 << 16, pair_flops=1 << 16),),
                    side_bytes=side_bytes,
                    side_token_flops=side_bytes,
                )
                for path in paths
            ),
        ),
        speeds={"a100_80g": PlaceSpeed(rates=RATES, link_bytes_per_s=link)},
        rules=rules,
    )  # fmt: skip


def random_loaded(seed: int, *, most_models: int = 6, nodes: tuple[int, ...] | None = None) -> PlaceProblem:
    """Bases with fine-tunes of their upper part; some expect nothing; some have a rule."""
    generator = random.Random(seed)
    sizes: list[float] = []
    paths: list[tuple[int, ...]] = []
    loads: list[PlaceLoad | None] = []
    for _ in range(generator.randint(1, 2)):
        lower, upper = len(sizes), len(sizes) + 1
        sizes += [generator.choice([2, 8, 14, 30]), generator.choice([1, 4, 8])]
        for _ in range(generator.randint(1, most_models // 2)):
            path = (lower, upper)
            if generator.random() < 0.4:
                path = (lower, len(sizes))
                sizes.append(generator.choice([1, 4, 8]))
            paths.append(path)
            quiet = generator.random() < 0.15
            loads.append(
                None
                if quiet
                else load(
                    generator.choice([0.2, 1, 3, 6]), tpot_ms=generator.choice([40, 80, None]),
                    ttft_ms=generator.choice([None, None, 2000]),
                )
            )  # fmt: skip
    given_nodes = nodes or generator.choice([(2,), (3,), (2, 2), (4,)])
    rules: list[PlaceRule] = []
    if len(paths) > 1 and generator.random() < 0.5:
        kind = generator.choice(["pin", "apart", "alone", "replicas", "nodes"])
        chains = tuple(generator.sample(range(len(paths)), 2 if kind == "apart" else 1))
        rules.append(PlaceRule(kind=kind, chains=chains, devices=frozenset({0, 1}), text=f"rule {kind}", span=span(9),
                               count=2))  # fmt: skip
    return loaded(sizes, paths, loads, nodes=given_nodes, rules=tuple(rules), side_bytes=generator.choice([0, 10**8]))


def bins(sizes: list[int], capacity: int, devices: int) -> Packing:
    """Bin packing by time: one item a group, no memory."""
    count = len(sizes)
    return Packing(
        groups=tuple(Group(units=1, tau_ns=10**6, items=(number,), milli_tokens=0) for number in range(count)),
        items=count,
        kinds=(
            CellKind(
                device="x", width=1, offered_bytes=1, step_ns=0, item_bytes=(0,) * count, item_ns=(0,) * count,
                unit_bytes=(0,) * count, unit_parts=tuple(size * PARTS // capacity for size in sizes),
                limit=(PARTS,) * count, activation=(0,) * count,
            ),
        ),
        blocks=(Block(devices=tuple(range(devices)), kinds=(0,)),),
        rows=1,
    )  # fmt: skip


def every_packing(packing: Packing) -> int | None:
    """The fewest devices of any packing whose groups are whole, on cells of one device: found by trying all."""
    best = None
    devices = range(packing.devices)
    kind_of = {device: block.kinds[0] for block in packing.blocks for device in block.devices}
    for places in itertools.product(devices, repeat=len(packing.groups)):
        cells = [
            PackedCell(
                kind=kind_of[device], devices=(device,),
                units=tuple((g, packing.groups[g].units) for g, place in enumerate(places) if place == device),
            )
            for device in sorted(set(places))
        ]  # fmt: skip
        if (best is None or len(cells) < best) and packing_problem(packing, cells) is None:
            best = len(cells)
    return best
