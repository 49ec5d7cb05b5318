"""The same models, apps and devices, arranged as others would: what sharing blocks is worth.

In: a plan. Out: fleets to run the same load on, with the same scheduler, prices and layout.

- ``pm``, per model: each chain is a model of its own, fine-tunes merged; nothing is shared, in memory or in a launch.
- ``ps``, parameter sharing as LoRA servers do it: chains on one path (adapters of one base) share its weights and its
  launches; every full fine-tune has weights of its own.
- ``no-batching``: weights lie once as in the plan, and each chain's rows run in launches of their own.
- ``no-cache``: as the plan, and nothing is found in the KV cache.

Baselines get the devices that the plan uses, and as many more of the same kind as they need to fit at all. They are
packed by bytes, as the plan is: a chain goes where it adds least, and among equals where least lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from blockc.cost import ChainWork, DeviceRates, PlanWork, SegmentWork, StepPricer, cell_rates, plan_work
from blockc.cost.work import side_bytes_of
from blockc.diag import Diagnostics
from blockc.ir import parse_structure
from blockc.ir.layout import ResidentTensor, block_tensors, page_share
from blockc.plan import ExecutionPlan
from blockc.simulate.fleet import Fleet, FleetInstance, fleet_of, instance_limits
from blockc.spec.device_kinds import DEVICE_KINDS
from blockc_runtime.router import Network

_WIDTHS: Final = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What a chain keeps where it runs: weights by the name of what they are shared as, and bytes of its own."""

    unit: str
    unit_bytes: int
    own_bytes: int


@dataclass(slots=True)
class _Cell:
    """Devices that are filled together. Bytes are those of all of them."""

    width: int
    offered_bytes: int
    units: dict[str, int] = field(default_factory=dict)
    chains: list[int] = field(default_factory=list)
    own_bytes: int = 0

    @property
    def weights_bytes(self) -> int:
        return sum(self.units.values()) + self.own_bytes

    def added_bytes(self, model: _Model) -> int:
        return model.own_bytes + (0 if model.unit in self.units else model.unit_bytes)

    def take(self, chain: int, model: _Model) -> None:
        self.units[model.unit] = model.unit_bytes
        self.own_bytes += model.own_bytes
        self.chains.append(chain)


def per_model(plan: ExecutionPlan, rates: Mapping[str, DeviceRates], *, diags: Diagnostics) -> Fleet | None:
    """Every chain by itself. Reports what fits nowhere (BC401), and is then None."""
    models = [
        _Model(unit=f"chain {index}", unit_bytes=nbytes, own_bytes=0) for index, nbytes in enumerate(_path_bytes(plan))
    ]
    work = _separate(plan_work(plan), lambda chain: chain, merged=True)
    return _packed("pm", plan, models, work, rates, diags)


def parameter_sharing(plan: ExecutionPlan, rates: Mapping[str, DeviceRates], *, diags: Diagnostics) -> Fleet | None:
    """Adapters share their base, and nothing else is shared. Reports what fits nowhere (BC401), and is then None."""
    sides = side_bytes_of(plan)
    paths = [chain.path for chain in plan.chains]
    models = [
        _Model(unit=path, unit_bytes=nbytes, own_bytes=own)
        for path, nbytes, own in zip(paths, _path_bytes(plan), sides, strict=True)
    ]
    work = _separate(plan_work(plan), lambda chain: paths.index(paths[chain]), merged=False)
    return _packed("ps", plan, models, work, rates, diags)


def without_batching(plan: ExecutionPlan, rates: Mapping[str, DeviceRates], *, diags: Diagnostics) -> Fleet | None:
    """The plan's memory and places, with launches for each chain."""
    del diags
    fleet = fleet_of(plan, rates)
    work = _separate(plan_work(plan), lambda chain: chain, merged=False)
    return replace(fleet, label="no-batching", instances=tuple(
        replace(item, pricer=StepPricer(work, item.rates)) for item in fleet.instances
    ))  # fmt: skip


def without_cache(plan: ExecutionPlan, rates: Mapping[str, DeviceRates], *, diags: Diagnostics) -> Fleet | None:
    """The plan, with a cache in which no request finds another's tokens."""
    del diags
    return replace(fleet_of(plan, rates), label="no-cache", caches=False)


Make = Callable[..., Fleet | None]
BASELINES: Final[dict[str, Make]] = {
    "pm": per_model,
    "ps": parameter_sharing,
    "no-batching": without_batching,
    "no-cache": without_cache,
}


def _separate(work: PlanWork, owner: Callable[[int], int], *, merged: bool) -> PlanWork:
    """Launches that only chains of one owner share. ``merged``: fine-tunes are in the weights and cost nothing."""
    segments: list[SegmentWork] = []
    index_of: dict[tuple[int, int], int] = {}
    chains: list[ChainWork] = []
    for number, chain in enumerate(work.chains):
        own = []
        for segment in chain.segments:
            key = (owner(number), segment)
            if key not in index_of:
                index_of[key] = len(segments)
                segments.append(work.segments[segment])
            own.append(index_of[key])
        alone = replace(chain, segments=tuple(own))
        chains.append(replace(alone, side_bytes=0, side_token_flops=0) if merged else alone)
    return PlanWork(segments=tuple(segments), chains=tuple(chains))


def _path_bytes(plan: ExecutionPlan) -> list[int]:
    """Bytes of all weights that each chain passes, by the layout of the plan."""
    structures = {digest: parse_structure(text) for digest, text in plan.structures.items()}
    of_path: dict[str, int] = {}
    for digest, path in plan.paths.items():
        tensors: set[ResidentTensor] = set()
        for name in path.blocks:
            block = plan.blocks[name]
            tensors |= block_tensors(structures[block.structure], block.tensors)
            if block.prelude is not None:
                prelude = plan.blocks[block.prelude]
                tensors |= block_tensors(structures[prelude.structure], prelude.tensors)
        of_path[digest] = sum(tensor.nbytes for tensor in tensors)
    return [of_path[chain.path] for chain in plan.chains]


def _packed(
    label: str,
    plan: ExecutionPlan,
    models: Sequence[_Model],
    work: PlanWork,
    rates: Mapping[str, DeviceRates],
    diags: Diagnostics,
) -> Fleet | None:
    """Chains on cells of the plan's first device's kind, the largest first."""
    device = plan.devices[plan.instances[0].devices[0]]
    workspace_bytes = max(entry.workspace_bytes for entry in plan.memory)
    offered_bytes = device.memory_bytes - device.reserve_bytes - workspace_bytes
    used = len({item for instance in plan.instances for item in instance.devices})
    cells: list[_Cell] = []
    free = used
    place: dict[int, int] = {}
    for chain in sorted(range(len(models)), key=lambda item: (-models[item].unit_bytes, models[item].unit, item)):
        model = models[chain]
        width = _width(plan, chain, model, offered_bytes)
        if width is None:
            name = plan.apps[[app.chain for app in plan.apps].index(chain)].address
            diags.report(
                "BC401",
                f"the baseline `{label}` cannot hold {name} on 8 devices of the kind `{device.kind}`",
                help=f"leave `{label}` out",
            )
            return None
        while free >= width and not any(cell.width == width and not cell.chains for cell in cells):
            cells.append(_Cell(width=width, offered_bytes=offered_bytes * width))
            free -= width
        fitting = [
            (cell.added_bytes(model), cell.weights_bytes, index)
            for index, cell in enumerate(cells)
            if cell.width >= width and _fits(plan, cell, chain, model)
        ]
        if fitting:
            index = min(fitting)[2]
        else:
            index = len(cells)
            cells.append(_Cell(width=width, offered_bytes=offered_bytes * width))
        cells[index].take(chain, model)
        place[chain] = index
    return _fleet(label, plan, cells, place, work, rates, device.kind)


def _width(plan: ExecutionPlan, chain: int, model: _Model, offered_bytes: int) -> int | None:
    return next(
        (
            width
            for width in _WIDTHS
            if _fits(plan, _Cell(width=width, offered_bytes=offered_bytes * width), chain, model)
        ),
        None,
    )


def _fits(plan: ExecutionPlan, cell: _Cell, chain: int, model: _Model) -> bool:
    """Whether one sequence of full length fits beside the weights."""
    pages = _least_pages(plan, [*cell.chains, chain])
    return cell.weights_bytes + cell.added_bytes(model) + _pages_bytes(plan, pages, cell.width) <= cell.offered_bytes


def _least_pages(plan: ExecutionPlan, chains: Sequence[int]) -> dict[int, int]:
    least: dict[int, int] = {}
    for chain in chains:
        entry = plan.chains[chain]
        for kv in entry.kv:
            pages = -(-entry.max_model_len // plan.kv_groups[kv.group].page_tokens)
            least[kv.group] = max(least.get(kv.group, 0), pages)
    return least


def _pages_bytes(plan: ExecutionPlan, pages: Mapping[int, int], width: int) -> int:
    groups = plan.kv_groups
    return sum(
        count * width * page_share(groups[group].page_bytes, kv_heads=groups[group].kv_heads, devices=width)
        for group, count in pages.items()
    )


def _pages(plan: ExecutionPlan, cell: _Cell) -> dict[int, int]:
    """What is left of a cell: as many full sequences in every group, up to a step's rows."""
    least = _least_pages(plan, cell.chains)
    low, high = 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        if cell.weights_bytes + _pages_bytes(plan, _grown(plan, least, middle), cell.width) <= cell.offered_bytes:
            low = middle
        else:
            high = middle - 1
    return _grown(plan, least, low)


def _grown(plan: ExecutionPlan, least: Mapping[int, int], permille: int) -> dict[int, int]:
    more = plan.batching.max_rows - 1
    return {group: pages + pages * more * permille // 1000 for group, pages in least.items()}


def _fleet(
    label: str,
    plan: ExecutionPlan,
    cells: Sequence[_Cell],
    place: Mapping[int, int],
    work: PlanWork,
    rates: Mapping[str, DeviceRates],
    kind: str,
) -> Fleet:
    used = [index for index, cell in enumerate(cells) if cell.chains]
    number = {index: position for position, index in enumerate(used)}
    instances = []
    for index in used:
        cell = cells[index]
        own = cell_rates(rates[kind], width=cell.width, link_bytes_per_s=DEVICE_KINDS[kind].link_bytes_per_s)
        instances.append(
            FleetInstance(
                name=f"{label}{number[index]}",
                width=cell.width,
                limits=instance_limits(plan, _pages(plan, cell), max_rows=plan.batching.max_rows),
                rates=own,
                pricer=StepPricer(work, own),
            )
        )
    ours = fleet_of(plan, rates)
    return Fleet(
        label=label,
        apps=tuple(replace(app, instances=(number[place[app.chain]],), shares=(1.0,)) for app in ours.apps),
        instances=tuple(instances),
        devices=sum(item.width for item in instances),
        weights_bytes=sum(cells[index].weights_bytes for index in used),
        network=Network(nodes=tuple(item.name for item in instances)),
    )
