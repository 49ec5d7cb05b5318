"""Models larger than a device: cells as narrow as they can be, shares that add up, and plain words where none fits."""

from __future__ import annotations

import hashlib
import random

import pytest

from blockc.diag import Diagnostics
from blockc.ir import TensorRef
from blockc.ir.layout import ResidentTensor, page_share, tensor_share
from blockc.place import PlaceChain, PlaceDevice, PlaceProblem, PlaceSegment, place
from blockc.place.cells import WIDTHS, Views
from tests.place.problems import chain, device, problem

MIB = 1 << 20


def matrix(name: str, rows: int, columns: int = 1024) -> ResidentTensor:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return ResidentTensor(ref=TensorRef(digest=digest, dtype="U8", shape=(rows, columns)), form="linear")


def matrices(name: str, mib: int) -> PlaceSegment:
    return PlaceSegment(tensors=frozenset(matrix(f"{name}{i}", 1024) for i in range(mib)), activation_bytes=4096)


def on(*nodes: str, mib: int, kind: str = "cuda") -> list[PlaceDevice]:
    return [
        PlaceDevice(address=f"{node}/g{index}", kind=kind, memory_bytes=mib * MIB, reserve_bytes=0)
        for index, node in enumerate(nodes)
    ]


def one_model(mib: int, devices: list[PlaceDevice]) -> PlaceProblem:
    return problem(devices, [matrices("w", mib)], [chain("big", (0,))], page_bytes=8192, kv_heads=8)


@pytest.mark.parametrize(("mib", "width"), [(9, 1), (11, 2), (19, 2), (21, 4), (39, 4), (41, 8), (79, 8)])
def test_a_model_takes_the_narrowest_cell_that_holds_it(mib: int, width: int) -> None:
    diags = Diagnostics()
    placement = place(one_model(mib, on(*["n"] * 8, mib=10)), diags=diags)
    assert placement is not None
    (instance,) = placement.instances
    assert instance.devices == tuple(range(width))
    assert placement.solver.value == width
    assert placement.solver.bound == -(-mib // 10)
    assert [item.code.id for item in diags] == (["BC403"] if placement.solver.gap else [])
    used = [entry.weights_bytes for entry in placement.memory]
    assert used == [mib * MIB // width] * width + [0] * (8 - width)


@pytest.mark.parametrize("devices", [on("a", "b", mib=10), on("a", mib=10) + on("a", mib=11)])
def test_a_cell_is_of_like_devices_in_one_node(devices: list[PlaceDevice]) -> None:
    diags = Diagnostics()
    given = one_model(15, [PlaceDevice(**{**_fields(d), "address": f"{d.address}{i}"}) for i, d in enumerate(devices)])
    assert place(given, diags=diags) is None
    (item,) = diags
    assert item.code.id == "BC401"
    assert "`big` needs 15.1 MiB on one device, the largest offers" in item.message


def _fields(entry: PlaceDevice) -> dict[str, object]:
    return {name: getattr(entry, name) for name in ("kind", "memory_bytes", "reserve_bytes")}


def test_what_fits_no_cell_says_how_much_each_device_would_need() -> None:
    diags = Diagnostics()
    assert place(one_model(50, on("n", "n", "n", "n", mib=10)), diags=diags) is None
    (item,) = diags
    assert "`big` needs 12.5 MiB on each of 4 devices, they offer 10.0 MiB" in item.message
    assert item.help is not None
    assert "`memory = 13MiB` on each device" in item.help
    enough = place(one_model(50, on("n", "n", "n", "n", mib=13)), diags=Diagnostics())
    assert enough is not None
    assert enough.instances[0].devices == (0, 1, 2, 3)


def test_models_that_fit_one_device_stay_on_one_beside_a_large_one() -> None:
    given = problem(
        on(*["n"] * 4, mib=10),
        [matrices("large", 15), matrices("a", 8), matrices("b", 8)],
        [chain("large", (0,)), chain("a", (1,)), chain("b", (2,))],
    )
    placement = place(given, diags=Diagnostics())
    assert placement is not None
    assert sorted((instance.chains, len(instance.devices)) for instance in placement.instances) == [
        ((0,), 2),
        ((1,), 1),
        ((2,), 1),
    ]
    assert sorted(d for instance in placement.instances for d in instance.devices) == [0, 1, 2, 3]


def test_a_cell_of_models_that_would_each_fit_alone_only_where_nothing_else_fits() -> None:
    """Three models of six on two devices of ten: split, all three fit."""
    models = [matrices(str(index), 6) for index in range(3)]
    chains = [chain(f"m{index}", (index,)) for index in range(3)]
    split = place(problem(on("n", "n", mib=10), models, chains), diags=Diagnostics())
    assert split is not None
    assert [instance.devices for instance in split.instances] == [(0, 1)]
    apart = place(problem(on("n", "n", "n", mib=10), models, chains), diags=Diagnostics())
    assert apart is not None
    assert [instance.devices for instance in apart.instances] == [(0,), (1,), (2,)]


def test_adapters_on_a_large_base_are_on_one_cell_until_they_do_not_fit() -> None:
    def fleet(adapters: int) -> PlaceProblem:
        chains = [chain(f"a{index}", (0,), side_bytes=MIB) for index in range(adapters)]
        return problem(on(*["n"] * 4, mib=10), [matrices("base", 15)], chains)

    few = place(fleet(4), diags=Diagnostics())
    assert few is not None
    assert [instance.devices for instance in few.instances] == [(0, 1)]
    many = place(fleet(8), diags=Diagnostics())
    assert many is not None
    assert [instance.devices for instance in many.instances] == [(0, 1), (2, 3)]
    more = place(fleet(20), diags=Diagnostics())  # two copies of the base leave too little: one cell of all four
    assert more is not None
    assert [instance.devices for instance in more.instances] == [(0, 1, 2, 3)]


@pytest.mark.parametrize(
    ("kv_heads", "devices", "heads"),
    [(8, 1, 8), (8, 2, 4), (8, 8, 1), (2, 4, 1), (1, 8, 1), (6, 4, 6), (3, 2, 3), (6, 2, 3)],
)
def test_kv_heads_that_do_not_divide_are_repeated_and_counted(kv_heads: int, devices: int, heads: int) -> None:
    assert page_share(kv_heads * 640, kv_heads=kv_heads, devices=devices) == heads * 640


def test_vectors_are_on_every_device_and_matrices_split() -> None:
    vector = ResidentTensor(ref=TensorRef(digest="0" * 64, dtype="BF16", shape=(8192,)), form="plain")
    assert tensor_share(vector, 4) == vector.nbytes
    assert tensor_share(matrix("m", 8192), 4) == matrix("m", 8192).nbytes // 4


def _random_fleet(seed: int) -> PlaceProblem:
    generator = random.Random(seed)
    segments = [matrices(f"{seed}-{index}", generator.randint(1, 12)) for index in range(3)]
    chains: list[PlaceChain] = []
    for index in range(generator.randint(1, 6)):
        path = tuple(sorted(generator.sample(range(3), generator.randint(1, 3))))
        chains.append(
            chain(f"c{index}", path, side_bytes=generator.randint(0, MIB), length=generator.choice([16, 640]))
        )
    nodes = [generator.choice("ab") for _ in range(generator.randint(2, 6))]
    memory = generator.randint(4, 16)
    return problem(
        on(*sorted(nodes), mib=memory), segments, chains, page_bytes=generator.choice([2, 3]) * 8192, kv_heads=8
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(80))
def test_every_placement_over_cells_holds(seed: int) -> None:
    given = _random_fleet(seed)
    placement = place(given, diags=Diagnostics())
    assert placement == place(given, diags=Diagnostics())
    if placement is None:
        return
    assert placement.solver.bound <= placement.solver.value
    placed = [device for instance in placement.instances for device in instance.devices]
    assert len(placed) == len(set(placed)) == placement.solver.value
    assert sorted(c for instance in placement.instances for c in instance.chains) == list(range(len(given.chains)))
    for instance in placement.instances:
        width = len(instance.devices)
        assert width in WIDTHS
        assert len({given.devices[device].address.split("/")[0] for device in instance.devices}) == 1
        tensors = {t for c in instance.chains for s in given.chains[c].segments for t in given.segments[s].tensors}
        entries = [placement.memory[device] for device in instance.devices]
        assert all(entry.used_bytes <= entry.capacity_bytes for entry in entries)
        assert sum(entry.weights_bytes for entry in entries) >= sum(tensor.nbytes for tensor in tensors)
        assert sum(entry.sides_bytes for entry in entries) >= sum(given.chains[c].side_bytes for c in instance.chains)
        kv_bytes = sum(pages * given.groups[group].page_bytes for group, pages in instance.kv_pages.items())
        assert sum(entry.kv_bytes for entry in entries) >= kv_bytes


@pytest.mark.parametrize("seed", range(80))
def test_a_single_chain_is_never_on_a_wider_cell_than_it_needs(seed: int) -> None:
    given = _random_fleet(seed)
    for index in range(len(given.chains)):
        alone = problem(list(given.devices), list(given.segments), [given.chains[index]], page_bytes=16384, kv_heads=8)
        placement = place(alone, diags=Diagnostics())
        views = Views(problem=alone)
        widths = [width for block in views.blocks() if (width := views.least_width(0, block)) is not None]
        assert (placement is None) == (not widths)
        if placement is not None:
            assert len(placement.instances[0].devices) == min(widths)


def test_the_devices_of_a_problem_without_cells_are_as_before() -> None:
    given = problem(
        [device(0, 20 * MIB), device(1, 20 * MIB)], [matrices("w", 8)], [chain("a", (0,)), chain("b", (0,))]
    )
    placement = place(given, diags=Diagnostics())
    assert placement is not None
    assert [instance.devices for instance in placement.instances] == [(0,)]
    assert placement.solver.status == "optimal"
