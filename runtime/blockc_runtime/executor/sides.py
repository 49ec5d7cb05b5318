"""The sides of a segment's fine-tunes, stacked in banks.

In: the manifests of the chains that pass the segment. Out: banks of fine-tunes alike in rank and sites, with A and B
stacked per linear; per launch, which rows use which.
Invariant: a bank's slot holds one chain's sides and nothing else; a chain that fails to load is in no bank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir.layout import padded_rank
from blockc.plan import LowRankEntry, SideManifest
from blockc_runtime.executor.batch import TokenBatch
from blockc_runtime.executor.program import LinearGroup
from blockc_runtime.executor.weights import WeightStore
from blockc_runtime.ops.linear.sides import (
    SideBatch,
    SideOutput,
    SideSet,
    SideWeights,
    side_batch,
)
from blockc_runtime.step import Row

# (occurrence in the path, site): the terms there.
ChainSides = Mapping[tuple[int, str], tuple[LowRankEntry, ...]]

# Padded rank, and the places in order.
Signature = tuple[int, tuple[tuple[int, str], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Fine-tunes alike in rank and sites. ``slots``: chain -> slot. ``weights``: (occurrence, group) -> stacks."""

    slots: dict[int, int]
    weights: dict[tuple[int, int], SideWeights]

    @property
    def nbytes(self) -> int:
        """Bytes of its stacks."""
        return sum(side.nbytes for side in self.weights.values())

    def select(self, batch: TokenBatch, rows: Sequence[Row], device: torch.device) -> BankUse | None:
        """Who uses this bank in ``batch``; None if nobody does."""
        if not any(rows[i].chain in self.slots for i in batch.rows):
            return None
        slots = [self.slots.get(rows[i].chain) for i in batch.rows]
        return BankUse(
            bank=self,
            tokens=side_batch(list(zip(batch.counts, slots, strict=True)), device=device),
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
    sides: dict[tuple[int, str], tuple[LowRankEntry, ...]] = {}
    for side in manifest.sides:
        if (side.occurrence, side.site) in sides or not side.terms:
            raise ValueError(f"site {side.site} of occurrence {side.occurrence} has no single side")
        sides[side.occurrence, side.site] = side.terms
    return sides


def signature(sides: ChainSides) -> Signature:
    """What fine-tunes of one bank have in common: padded rank, and where they act."""
    rank = max(_rank(terms) for terms in sides.values())
    return padded_rank(rank), tuple(sorted(sides))


def read_side(terms: Sequence[LowRankEntry], store: WeightStore, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[out, r]``: terms side by side, scale folded in in float32, then cast to ``dtype``."""
    a = torch.cat([store.read(term.a).float() for term in terms], 0)
    b = torch.cat([store.read(term.b).float() * float.fromhex(term.scale) for term in terms], 1)
    for term in terms:
        store.release(term.a)
        store.release(term.b)
    a, b = a.to(dtype), b.to(dtype)
    # A value that is not finite is the fine-tune's own fault, and is found before anybody is served with it.
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        diags = Diagnostics()
        diags.report("BC203", "a fine-tune holds values that are not finite")
        raise DiagnosticError(diags)
    return a, b


def build_banks(
    chains: Mapping[int, ChainSides],
    *,
    first: Mapping[int, int],
    groups: Sequence[tuple[LinearGroup, ...]],
    store: WeightStore,
    dtype: torch.dtype,
) -> tuple[Bank, ...]:
    """Banks of one segment. ``first[chain]``: its first occurrence in the chain; ``groups``: linears per occurrence."""
    alike: defaultdict[Signature, list[int]] = defaultdict(list)
    for chain, sides in chains.items():
        rank, places = signature(sides)
        alike[rank, tuple((place - first[chain], site) for place, site in places)].append(chain)
    banks = []
    for (rank, _), members in sorted(alike.items(), key=lambda item: min(item[1])):
        weights: dict[tuple[int, int], SideWeights] = {}
        for occurrence, occurrence_groups in enumerate(groups):
            for number, group in enumerate(occurrence_groups):
                outputs = [
                    [None if site is None else chains[c].get((first[c] + occurrence, site)) for c in members]
                    for site in group.sites
                ]
                if any(terms[0] is not None for terms in outputs):
                    weights[occurrence, number] = _stack(outputs, rank, store, dtype)
        if weights:
            banks.append(Bank(slots={chain: slot for slot, chain in enumerate(members)}, weights=weights))
    return tuple(banks)


def side_sets(uses: Sequence[BankUse], groups: Sequence[tuple[LinearGroup, ...]]) -> list[list[SideSet]]:
    """For each occurrence and group what its linears are given."""
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


def _rank(terms: Sequence[LowRankEntry]) -> int:
    return sum(term.a.shape[0] for term in terms)


def _stack(
    places: Sequence[Sequence[tuple[LowRankEntry, ...] | None]],
    rank: int,
    store: WeightStore,
    dtype: torch.dtype,
) -> SideWeights:
    """``places[output][member]``; outputs without sides take no rank, since all members lack the same.

    Filled in place, one side at a time: with many fine-tunes the parts of a stack are as large as the stack.
    """
    held = {
        output: [terms for terms in members if terms is not None]
        for output, members in enumerate(places)
        if members[0] is not None
    }
    slots, inputs = len(places[0]), next(iter(held.values()))[0][0].a.shape[1]
    a = torch.zeros((slots, inputs, rank * len(held)), dtype=dtype, device=store.device)
    outputs: list[SideOutput] = []
    for number, (output, members) in enumerate(held.items()):
        start = rank * number
        b = torch.zeros((slots, rank, members[0][0].b.shape[0]), dtype=dtype, device=store.device)
        for slot, terms in enumerate(members):
            own_a, own_b = read_side(terms, store, dtype)
            a[slot, :, start : start + len(own_a)] = own_a.t()
            b[slot, : own_b.shape[1]] = own_b.t()
        outputs.append(SideOutput(output=output, rank_start=start, rank_stop=start + rank, b=b))
    return SideWeights(a=a, outputs=tuple(outputs))
