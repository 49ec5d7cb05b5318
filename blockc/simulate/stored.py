"""What chains keep where they run, and which launches they share, under several ways to serve the same models.

In: a plan. Out: for each way, weights by what they are shared as, and the work of launches.

- ``ours``: tensors once for all chains that bind them, launches for all rows of a segment.
- ``ps``: chains on one path (adapters of one base) share its weights and launches; full fine-tunes share nothing.
- ``pm``: each chain is a model of its own, its fine-tune merged, which then costs nothing.
- ``no-sharing``: as ``pm``, and fine-tunes stay beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from blockc.cost import ChainWork, PlanWork, SegmentWork, plan_work
from blockc.cost.work import side_bytes_of
from blockc.ir import parse_structure
from blockc.ir.layout import ResidentTensor, block_tensors
from blockc.plan import ExecutionPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a chain keeps where it runs: bytes by the name of what is shared, and bytes of its own."""

    units: Mapping[str, int]
    own_bytes: int

    @property
    def nbytes(self) -> int:
        """Where it runs alone."""
        return sum(self.units.values()) + self.own_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to serve: ``stored`` by chain, and what a step launches."""

    label: str
    stored: tuple[Stored, ...]
    work: PlanWork


def ways(plan: ExecutionPlan) -> dict[str, Way]:
    """All of them, by label."""
    work, sides = plan_work(plan), side_bytes_of(plan)
    tensors = path_tensors(plan)
    paths = [chain.path for chain in plan.chains]
    whole = _whole_bytes(plan, tensors)
    return {
        "ours": Way(label="ours", stored=_by_tensor(paths, tensors, sides), work=work),
        "ps": Way(
            label="ps",
            stored=tuple(
                Stored(units={path: nbytes}, own_bytes=own)
                for path, nbytes, own in zip(paths, whole, sides, strict=True)
            ),
            work=separate(work, lambda chain: paths.index(paths[chain]), merged=False),
        ),
        "pm": Way(
            label="pm",
            stored=_alone(whole),
            work=separate(work, lambda chain: chain, merged=True),
        ),
        "no-sharing": Way(
            label="no-sharing",
            stored=tuple(
                Stored(units={f"chain {index}": nbytes}, own_bytes=own)
                for index, (nbytes, own) in enumerate(zip(whole, sides, strict=True))
            ),
            work=separate(work, lambda chain: chain, merged=False),
        ),
    }


def models_alone(plan: ExecutionPlan) -> tuple[Stored, ...]:
    """By chain, what it keeps as a model of its own, its fine-tune merged."""
    return _alone(_whole_bytes(plan, path_tensors(plan)))


def _whole_bytes(plan: ExecutionPlan, tensors: Mapping[str, frozenset[ResidentTensor]]) -> list[int]:
    return [sum(tensor.nbytes for tensor in tensors[chain.path]) for chain in plan.chains]


def _alone(whole: list[int]) -> tuple[Stored, ...]:
    return tuple(Stored(units={f"chain {index}": nbytes}, own_bytes=0) for index, nbytes in enumerate(whole))


def separate(work: PlanWork, owner: Callable[[int], int], *, merged: bool) -> PlanWork:
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


def path_tensors(plan: ExecutionPlan) -> dict[str, frozenset[ResidentTensor]]:
    """All weights that each path binds, by the layout of the plan."""
    structures = {digest: parse_structure(text) for digest, text in plan.structures.items()}
    found: dict[str, frozenset[ResidentTensor]] = {}
    for digest, path in plan.paths.items():
        tensors: set[ResidentTensor] = set()
        for name in path.blocks:
            block = plan.blocks[name]
            tensors |= block_tensors(structures[block.structure], block.tensors)
            if block.prelude is not None:
                prelude = plan.blocks[block.prelude]
                tensors |= block_tensors(structures[prelude.structure], prelude.tensors)
        found[digest] = frozenset(tensors)
    return found


_EACH: Final = "tensors of "


def _by_tensor(
    paths: list[str], tensors: Mapping[str, frozenset[ResidentTensor]], sides: tuple[int, ...]
) -> tuple[Stored, ...]:
    """Tensors that the same paths bind are one unit: they come and go together."""
    order = sorted(tensors)
    users: dict[ResidentTensor, list[int]] = {}
    for index, path in enumerate(order):
        for tensor in tensors[path]:
            users.setdefault(tensor, []).append(index)
    units: dict[str, dict[str, int]] = {path: {} for path in order}
    for tensor, own in users.items():
        name = _EACH + ",".join(map(str, own))
        for index in own:
            unit = units[order[index]]
            unit[name] = unit.get(name, 0) + tensor.nbytes
    return tuple(Stored(units=units[path], own_bytes=own) for path, own in zip(paths, sides, strict=True))
