"""What every view needs to know of a plan: whose each block is, who passes it, where it lies.

In: a plan. Out: :class:`Facts`. Invariant: derived from the plan alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from blockc.plan import AppEntry, ExecutionPlan, SegmentEntry
from blockc.plan.uses import chains_through

LEVELS = 5  # steps from a block of one app to a block of most apps


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """``families``: the bases, by which colours are given; ``family_of_path`` and ``family_of_block`` index them.

    ``apps_of_block``: indices of the apps whose chains pass it; ``number_of_block``: its place in the plan's table.
    ``layers``: for each path and occurrence its first KV layer, or None.
    """

    plan: ExecutionPlan
    families: tuple[str, ...]
    family_of_path: dict[str, int]
    family_of_block: dict[str, int]
    apps_of_block: dict[str, tuple[int, ...]]
    number_of_block: dict[str, int]
    layers: dict[str, tuple[int | None, ...]]
    apps_of_chain: tuple[tuple[int, ...], ...]
    devices_of_chain: tuple[tuple[int, ...], ...]

    @property
    def most_apps(self) -> int:
        """Of any block."""
        return max(map(len, self.apps_of_block.values()), default=1)

    def level(self, apps: int) -> int:
        """How strongly something that so many apps share is drawn: 1 for one app, `LEVELS` for the most there are."""
        most = self.most_apps
        return 1 if apps < 2 or most < 2 else 1 + math.ceil((LEVELS - 1) * math.log(apps) / math.log(most) - 1e-9)

    def apps_of_segment(self, segment: SegmentEntry) -> list[AppEntry]:
        """The apps that pass it, in the plan's order."""
        passing = set(segment.chains)
        return [app for app in self.plan.apps if app.chain in passing]

    def segment_bytes(self, segment: SegmentEntry) -> int:
        """Bytes of its distinct tensors."""
        blocks = self.plan.paths[segment.path].blocks[segment.first : segment.first + segment.count]
        return sum(t.nbytes for t in {t for block in blocks for t in self.plan.blocks[block].tensors.values()})

    def block_bytes(self, digest: str) -> int:
        """Bytes of its distinct tensors."""
        return sum(t.nbytes for t in set(self.plan.blocks[digest].tensors.values()))

    def place(self, chain: int) -> str:
        """The devices that a chain runs on, in words."""
        names = [self.plan.devices[device].address for device in self.devices_of_chain[chain]]
        nodes = {name.rpartition("/")[0] for name in names}
        if len(names) > 1 and len(nodes) == 1:
            return f"{nodes.pop()}/{'+'.join(name.rpartition('/')[2] for name in names)}"
        return ", ".join(names)


def facts_of(plan: ExecutionPlan) -> Facts:
    """Everything derived once."""
    families = tuple(name for name, model in plan.models.items() if model.kind == "base")
    root_of_chain = {
        model.chain: root_of(plan, name) for name, model in plan.models.items() if model.chain is not None
    } | {app.chain: root_of(plan, app.model) for app in plan.apps}
    family_of_path: dict[str, int] = {}
    for index, chain in enumerate(plan.chains):
        root = root_of_chain.get(index)
        family_of_path.setdefault(chain.path, families.index(root) if root in families else 0)
    family_of_block: dict[str, int] = {}
    for path, family in family_of_path.items():
        for block in plan.paths[path].blocks:
            family_of_block[block] = min(family, family_of_block.get(block, family))
    apps_of_chain: list[list[int]] = [[] for _ in plan.chains]
    for index, app in enumerate(plan.apps):
        apps_of_chain[app.chain].append(index)
    devices: list[set[int]] = [set() for _ in plan.chains]
    for instance in plan.instances:
        for number in instance.chains:
            devices[number] |= set(instance.devices)
    return Facts(
        plan=plan,
        families=families or ("base",),
        family_of_path=family_of_path,
        family_of_block=family_of_block,
        apps_of_block={
            block: tuple(sorted(app for chain in chains for app in apps_of_chain[chain]))
            for block, chains in chains_through(plan).items()
        },
        number_of_block={block: number for number, block in enumerate(plan.blocks)},
        layers={path: _layers(plan, entry.blocks) for path, entry in plan.paths.items()},
        apps_of_chain=tuple(map(tuple, apps_of_chain)),
        devices_of_chain=tuple(tuple(sorted(own)) for own in devices),
    )


def root_of(plan: ExecutionPlan, model: str) -> str:
    """The base that a model derives from."""
    return lineage(plan, model)[-1]


def lineage(plan: ExecutionPlan, model: str) -> tuple[str, ...]:
    """The model, its parent, and so on to its base."""
    names = [model]
    while (entry := plan.models.get(names[-1])) is not None and entry.parent is not None:
        names.append(entry.parent)
    return tuple(names)


def span_words(noun: str, first: int, last: int) -> str:
    """``block 3``, ``blocks 3-7``."""
    return f"{noun} {first}" if first == last else f"{noun}s {first}-{last}"


def _layers(plan: ExecutionPlan, blocks: Sequence[str]) -> tuple[int | None, ...]:
    found: list[int | None] = []
    layer = 0
    for block in blocks:
        count = plan.structures[plan.blocks[block].structure].count("= blockc.attention(")
        found.append(layer if count else None)
        layer += count
    return tuple(found)
