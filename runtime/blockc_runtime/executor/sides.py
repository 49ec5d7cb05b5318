"""The sides of a segment's fine-tunes, stacked in banks.

In: the manifests of the chains that pass the segment. Out: banks of fine-tunes alike in rank, sites and codecs, their
tensors stacked per site; per launch, which rows use which.
Invariant: a bank's slot holds one chain's sides and nothing else; a chain that fails to load is in no bank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from blockc.ir import Side, Term
from blockc.ir.layout import padded_rank
from blockc.plan import BlockEntry, SideManifest
from blockc_runtime.executor.batch import TokenBatch
from blockc_runtime.executor.program import LinearGroup, SiteGroup
from blockc_runtime.executor.stacks import Places, stack
from blockc_runtime.executor.weights import WeightStore
from blockc_runtime.ops.sides import SideBatch, SideSet, side_batch
from blockc_runtime.step import Row

# (occurrence in the path, site): what is there.
ChainSides = Mapping[tuple[int, str], Side]

# Padded rank, and the places in order, each with the codecs of its terms.
Signature = tuple[int, tuple[tuple[tuple[int, str], str], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Fine-tunes alike in rank, sites and codecs.

    ``slots``: chain -> slot. ``weights``: (occurrence, group) -> stacks.
    """

    slots: dict[int, int]
    weights: dict[tuple[int, int], Any]

    @property
    def nbytes(self) -> int:
        """Bytes of its stacks."""
        return sum(int(side.nbytes) for side in self.weights.values())

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


def read_manifest(data: bytes) -> ChainSides:
    """Parse a manifest blob. Raises ValueError where it is malformed."""
    manifest = SideManifest.model_validate_json(data)
    sides: dict[tuple[int, str], Side] = {}
    for entry in manifest.sides:
        if (entry.occurrence, entry.site) in sides or not entry.terms:
            raise ValueError(f"site {entry.site} of occurrence {entry.occurrence} has no single side")
        sides[entry.occurrence, entry.site] = entry.side
    return sides


def signature(sides: ChainSides) -> Signature:
    """What fine-tunes of one bank have in common: padded rank, where they act and how."""
    rank = max(side.rank for side in sides.values())
    return padded_rank(rank), tuple(sorted((place, form_of(side)) for place, side in sides.items()))


def form_of(side: Side) -> str:
    """What sides must have in common to be stacked: each codec once, and how a bottleneck is built."""
    return " ".join(sorted({_form(term) for term in side.terms}))


def _form(term: Term) -> str:
    if term.codec != "bottleneck":
        return "low_rank" if term.rank else term.codec
    roles = ",".join(role for role, _ in term.tensors)
    words = f"{term.scalar('activation')},{term.scalar('reads')}"
    return f"bottleneck({words},{padded_rank(term['down'].shape[0])},{roles})"


def build_banks(
    chains: Mapping[int, ChainSides],
    *,
    first: Mapping[int, int],
    groups: Sequence[tuple[LinearGroup | SiteGroup, ...]],
    blocks: Sequence[BlockEntry],
    store: WeightStore,
    dtype: torch.dtype,
) -> tuple[Bank, ...]:
    """Banks of one segment.

    ``first[chain]``: its first occurrence in the chain; ``groups`` and ``blocks``: those of each occurrence.
    """
    alike: defaultdict[Signature, list[int]] = defaultdict(list)
    for chain, sides in chains.items():
        rank, places = signature(sides)
        alike[rank, tuple(((place - first[chain], site), form) for (place, site), form in places)].append(chain)
    banks = []
    for (rank, _), members in sorted(alike.items(), key=lambda item: min(item[1])):
        weights: dict[tuple[int, int], Any] = {}
        for occurrence, occurrence_groups in enumerate(groups):
            for number, group in enumerate(occurrence_groups):
                outputs = [
                    [None if site is None else chains[c].get((first[c] + occurrence, site)) for c in members]
                    for site in group.sites
                ]
                if any(sides[0] is not None for sides in outputs):
                    biases = group.biases if isinstance(group, LinearGroup) else ()
                    weights[occurrence, number] = stack(
                        Places(
                            kind=group.kind,
                            sides=outputs,
                            rank=rank,
                            biases=[None if name is None else blocks[occurrence].tensors[name] for name in biases],
                            height=_height(group, blocks[occurrence]),
                        ),
                        store,
                        dtype,
                    )
        if weights:
            banks.append(Bank(slots={chain: slot for slot, chain in enumerate(members)}, weights=weights))
    return tuple(banks)


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
