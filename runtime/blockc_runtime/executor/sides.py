"""The sides of a segment's fine-tunes, stacked in banks.

In: the manifests of the chains that pass the segment. Out: banks of fine-tunes alike in rank, sites and codecs, their
tensors stacked per site; per launch, which rows use which.
Invariant: a bank's slot holds one chain's sides and nothing else; a chain that fails to load is in no bank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blockc.ir import Side
from blockc.ir.banks import Signature, signature
from blockc.plan import BlockEntry
from blockc_runtime.executor.batch import TokenBatch
from blockc_runtime.executor.program import LinearGroup, SiteGroup
from blockc_runtime.executor.stacks import Places, stack
from blockc_runtime.executor.weights import WeightStore
from blockc_runtime.ops.sides import SideBatch, SideSet, side_batch
from blockc_runtime.step import Row

# (occurrence, group): stacks there.
Stacks = dict[tuple[int, int], Any]
# (occurrence in the path, site): what is there.
ChainSides = Mapping[tuple[int, str], Side]
# Digests of a segment's blocks, and of each member's manifest with where the segment begins in its chain.
Content = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Fine-tunes alike in rank, sites and codecs.

    ``slots``: chain -> slot. ``weights``: (occurrence, group) -> stacks. ``content``: what those were made of; empty
    where that changes.
    """

    slots: dict[int, int]
    weights: Stacks
    content: Content = ()

    @property
    def nbytes(self) -> int:
        """Bytes of its stacks."""
        return sum(int(side.nbytes) for side in self.weights.values())

    def of(self, manifests: Collection[str | None]) -> bool:
        """Whether it is made of these alone."""
        return all(part[0] in manifests for part in self.content if isinstance(part, tuple))

    def select(self, batch: TokenBatch, rows: Sequence[Row], device: torch.device) -> BankUse | None:
        """Who uses this bank in ``batch``; None if nobody does."""
        if not any(rows[i].chain in self.slots for i in batch.rows):
            return None
        slots = [self.slots.get(rows[i].chain) for i in batch.rows]
        return BankUse(
            bank=self,
            tokens=side_batch(
                list(zip(batch.counts, slots, strict=True)),
                device=device,
                positions=[rows[i].start for i in batch.rows],
            ),
            logits=side_batch(list(zip(batch.samples, slots, strict=True)), device=device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BankUse:
    """Which places of a launch use a bank: on the token axis, and among the rows whose logits are wanted."""

    bank: Bank
    tokens: SideBatch
    logits: SideBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSites:
    """Where fine-tunes may act in a segment: its occurrences' groups and blocks, and the dtype of its states.

    ``digests``: of the blocks.
    """

    digests: tuple[str, ...]
    groups: tuple[tuple[LinearGroup | SiteGroup, ...], ...]
    blocks: tuple[BlockEntry, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A fine-tune in a segment. ``first``: the segment's first occurrence in its chain; ``digest``: of its manifest."""

    digest: str | None
    sides: ChainSides
    first: int


def build_banks(
    members: Mapping[int, Member], sites: SegmentSites, store: WeightStore, kept: Mapping[Content, Bank]
) -> tuple[Bank, ...]:
    """Banks of one segment with a slot for each of its fine-tunes, by chain. ``kept``: of another plan."""
    alike: defaultdict[Signature, list[int]] = defaultdict(list)
    for chain, member in members.items():
        rank, places = signature(member.sides)
        relative = tuple(((place - member.first, site), form) for (place, site), form in places)
        alike[rank, relative].append(chain)
    banks = []
    for (rank, _), chains in sorted(alike.items(), key=lambda item: min(item[1])):
        own = [members[chain] for chain in chains]
        content = (sites.dtype, *sites.digests, *((member.digest, member.first) for member in own))
        there = kept.get(content)
        stacks = stack_members(own, rank, sites, store) if there is None else there.weights
        if stacks:
            slots = {chain: slot for slot, chain in enumerate(chains)}
            banks.append(Bank(slots=slots, weights=stacks, content=content))
    return tuple(banks)


def stack_members(
    members: Sequence[Member], rank: int, sites: SegmentSites, store: WeightStore, *, alone: bool = False
) -> Stacks:
    """Stacks of fine-tunes alike, one slot for each. ``alone``: see `Places`."""
    stacks: Stacks = {}
    for occurrence, (groups, block) in enumerate(zip(sites.groups, sites.blocks, strict=True)):
        for number, group in enumerate(groups):
            outputs = [
                [None if site is None else own.sides.get((own.first + occurrence, site)) for own in members]
                for site in group.sites
            ]
            if any(sides[0] is not None for sides in outputs):
                biases = group.biases if isinstance(group, LinearGroup) else ()
                places = Places(
                    kind=group.kind,
                    sides=outputs,
                    rank=rank,
                    biases=[None if name is None else block.tensors[name] for name in biases],
                    height=_height(group, block),
                    alone=alone,
                )
                stacks[occurrence, number] = stack(places, store, sites.dtype)
    return stacks


def _height(group: LinearGroup | SiteGroup, block: BlockEntry) -> int:
    """Rows of a table that ids are looked up in; 0 for other kinds of site."""
    param = group.param if isinstance(group, SiteGroup) and group.kind == "embed" else None
    return 0 if param is None else block.tensors[param].shape[0]


def side_sets(uses: Sequence[BankUse], groups: Sequence[tuple[LinearGroup | SiteGroup, ...]]) -> list[list[SideSet]]:
    """For each occurrence and group what it is given."""
    return [
        [
            tuple(
                (use.bank.weights[occurrence, number], use.logits if group.after_selection else use.tokens)
                for use in uses
                if (occurrence, number) in use.bank.weights
            )
            for number, group in enumerate(occurrence_groups)
        ]
        for occurrence, occurrence_groups in enumerate(groups)
    ]
