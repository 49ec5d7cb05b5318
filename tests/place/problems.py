"""Random placement problems: bases, adapters on them, checkpoints that changed their upper segments."""

from __future__ import annotations

import hashlib
import itertools
import random
from fractions import Fraction

from blockc.diag import Diagnostics, Span
from blockc.ir import TensorRef
from blockc.ir.layout import ResidentTensor
from blockc.place import PlaceChain, PlaceDevice, PlaceGroup, PlaceLoad, PlaceProblem, PlaceSegment, place
from blockc.place.bound import devices_bound
from blockc.place.greedy import Assignment
from blockc.place.sizes import Load, Sizes, sizes_of
from blockc.place.tables import Placement


def span(line: int) -> Span:
    return Span(file="fleet.blk", start_line=line, start_column=1, end_line=line, end_column=8)


def tensor(name: str, nbytes: int) -> ResidentTensor:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return ResidentTensor(ref=TensorRef(digest=digest, dtype="U8", shape=(nbytes,)), form="plain")


def segment(name: str, nbytes: int, *, activation_bytes: int = 0) -> PlaceSegment:
    return PlaceSegment(tensors=frozenset({tensor(name, nbytes)}), activation_bytes=activation_bytes)


def device(index: int, memory_bytes: int, *, reserve_bytes: int = 0, kind: str = "cpu") -> PlaceDevice:
    return PlaceDevice(
        address=f"local/d{index}", kind=kind, memory_bytes=memory_bytes, reserve_bytes=reserve_bytes, span=span(2)
    )


def load(rate: int) -> PlaceLoad:
    return PlaceLoad(rate_rps=Fraction(rate), prompt_tokens=Fraction(512), output_tokens=Fraction(128))


def chain(
    label: str,
    segments: tuple[int, ...],
    *,
    side_bytes: int = 0,
    length: int = 64,
    rate: int | None = None,
    line: int = 9,
) -> PlaceChain:
    return PlaceChain(
        label=label,
        segments=segments,
        groups=(0,),
        side_bytes=side_bytes,
        max_model_len=length,
        load=None if rate is None else load(rate),
        span=span(line),
    )


def problem(
    devices: list[PlaceDevice],
    segments: list[PlaceSegment],
    chains: list[PlaceChain],
    *,
    page_bytes: int = 512,
    layers: int = 1,
    kv_heads: int = 1,
    max_rows: int = 4,
    groups: int = 1,
) -> PlaceProblem:
    return PlaceProblem(
        devices=tuple(devices),
        segments=tuple(segments),
        groups=(PlaceGroup(page_bytes=page_bytes, kv_heads=kv_heads, page_tokens=16, layers=layers),) * groups,
        chains=tuple(chains),
        max_rows=max_rows,
        pm_bytes=3,
        ps_bytes=2,
        ours_bytes=1,
        cluster_span=span(1),
    )


def random_problem(seed: int, *, most_devices: int = 3, most_chains: int = 6) -> PlaceProblem:
    """Tight enough that about half of them need thought, and some have no placement."""
    generator = random.Random(seed)
    segments: list[PlaceSegment] = []
    chains: list[PlaceChain] = []
    rated = generator.random() < 0.5
    for base in range(generator.randint(1, 2)):
        lower, upper = len(segments), len(segments) + 1
        segments.append(segment(f"{base} lower", 512 * generator.randint(1, 60), activation_bytes=512))
        segments.append(segment(f"{base} upper", 512 * generator.randint(1, 60)))
        for variant in range(generator.randint(1, most_chains // 2)):
            path = (lower, upper)
            if generator.random() < 0.4:
                path = (lower, len(segments))
                segments.append(segment(f"{base} tuned {variant}", 512 * generator.randint(1, 60)))
            own = PlaceChain(
                label=f"model{base}-{variant}",
                segments=path,
                groups=(base,),
                side_bytes=512 * generator.randint(0, 8),
                max_model_len=generator.choice([16, 64, 160]),
                load=load(generator.randint(1, 9)) if rated else None,
                span=span(10 + len(chains)),
            )
            chains.append(own)
    memory = 512 * generator.randint(40, 200)
    alike = generator.random() < 0.5
    devices = [
        device(index, memory if alike else 512 * generator.randint(40, 200), reserve_bytes=512 * 3)
        for index in range(generator.randint(1, most_devices))
    ]
    return problem(devices, segments, chains, layers=generator.randint(1, 4), groups=2)


def every_assignment(sizes: Sizes) -> list[Assignment]:
    """All assignments that fit, found by trying all."""
    devices = range(len(sizes.problem.devices))
    found = []
    for assignment in itertools.product(devices, repeat=len(sizes.problem.chains)):
        members: dict[int, list[int]] = {}
        for index, number in enumerate(assignment):
            members.setdefault(number, []).append(index)
        if all(
            sizes.least(chains).used_bytes <= sizes.problem.devices[place].offered_bytes
            for place, chains in members.items()
        ):
            found.append(assignment)
    return found


def placed_on_fewest(given: PlaceProblem) -> Placement | None:
    """Its placement, held against trying everything: None where nothing fits, else on as few devices as can be."""
    every = every_assignment(sizes_of(given))
    placement = place(given, diags=Diagnostics())
    assert (placement is None) == (not every)
    if placement is None:
        return None
    fewest = min(len(set(assignment)) for assignment in every)
    assert placement.solver.value == fewest
    assert devices_bound(sizes_of(given)) <= fewest
    assert all(entry.used_bytes <= entry.capacity_bytes for entry in placement.memory)
    return placement


def assert_grows_by_chains(sizes: Sizes) -> None:
    """A load to which chains are added one by one is what they take together."""
    growing, held = Load(sizes), []
    for number in range(len(sizes.problem.chains)):
        held.append(number)
        assert growing.used_with(number) == sizes.least(held).used_bytes
        growing.add(number)
        assert growing.used_bytes == sizes.least(held).used_bytes
