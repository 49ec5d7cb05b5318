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
from blockc.plan import LowRankEntry, SideManifest
from blockc_runtime.executor.batch import TokenBatch
from blockc_runtime.executor.program import LinearGroup
from blockc_runtime.executor.weights import WeightStore
from blockc_runtime.ops.linear.sides import (
    SideBatch,
    SideOutput,
    SideSet,
    SideWeights,
    Span,
    side_batch,
)
from blockc_runtime.step import Row

# (occurrence in the path, site): the terms there.
ChainSides = Mapping[tuple[int, str], tuple[LowRankEntry, ...]]

# Ranks are padded to a power of two from here on: every bank costs launches, and a rank below this saves nothing.
_SMALLEST_RANK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Fine-tunes alike in rank and sites. ``slots``: chain -> slot. ``weights``: (occurrence, group) -> stacks."""

    slots: dict[int, int]
    weights: dict[tuple[int, int], SideWeights]

    def select(
        self, batch: TokenBatch, rows: Sequence[Row], device: torch.device
    ) -> SideBatch | None:
        """The tokens of ``batch`` that use this bank, None if none does."""
        singles: list[tuple[int, int]] = []
        spans: list[Span] = []
        for i, first, count in zip(batch.rows, batch.firsts, batch.counts, strict=True):
            slot = self.slots.get(rows[i].chain)
            if slot is None:
                continue
            if count == 1:
                singles.append((first, slot))
            else:
                spans.append(Span(start=first, stop=first + count, slot=slot))
        return side_batch(singles, spans, device=device) if singles or spans else None


def read_manifest(data: bytes) -> ChainSides:
    """Parse a manifest blob. Raises ValueError where it is malformed."""
    manifest = SideManifest.model_validate_json(data)
    sides: dict[tuple[int, str], tuple[LowRankEntry, ...]] = {}
    for side in manifest.sides:
        if (side.occurrence, side.site) in sides or not side.terms:
            raise ValueError(f"site {side.site} of occurrence {side.occurrence} has no single side")
        sides[side.occurrence, side.site] = side.terms
    return sides


def signature(sides: ChainSides) -> tuple[int, tuple[tuple[int, str], ...]]:
    """What fine-tunes of one bank have in common: padded rank, and where they act."""
    rank = max(_rank(terms) for terms in sides.values())
    return max(_SMALLEST_RANK, 1 << (rank - 1).bit_length()), tuple(sorted(sides))


def load_sides(
    sides: ChainSides, store: WeightStore, dtype: torch.dtype
) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    """A ``[r, in]`` and B ``[out, r]`` by occurrence and site, terms side by side, scale folded in."""
    return {place: _concatenate(terms, store, dtype) for place, terms in sides.items()}


def build_banks(
    chains: Mapping[int, tuple[ChainSides, dict[tuple[int, str], tuple[Tensor, Tensor]]]],
    *,
    first: Mapping[int, int],
    groups: Sequence[tuple[LinearGroup, ...]],
    device: torch.device,
) -> tuple[Bank, ...]:
    """Banks of one segment. ``first[chain]``: its first occurrence in the chain; ``groups``: linears per occurrence."""
    alike: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for chain, (sides, _) in chains.items():
        rank, places = signature(sides)
        offset = first[chain]
        alike[rank, tuple((place - offset, site) for place, site in places)].append(chain)
    banks = []
    for (rank, _), members in sorted(alike.items(), key=lambda item: min(item[1])):
        weights: dict[tuple[int, int], SideWeights] = {}
        for occurrence, occurrence_groups in enumerate(groups):
            for number, group in enumerate(occurrence_groups):
                terms = [
                    [chains[c][1].get((first[c] + occurrence, site)) for site in group.sites]
                    for c in members
                ]
                if any(term is not None for term in terms[0]):
                    assert isinstance(rank, int)
                    weights[occurrence, number] = _stack(terms, rank, device)
        if weights:
            slots = {chain: slot for slot, chain in enumerate(members)}
            banks.append(Bank(slots=slots, weights=weights))
    return tuple(banks)


def side_sets(
    banks: Sequence[tuple[Bank, SideBatch]], groups: Sequence[tuple[LinearGroup, ...]]
) -> list[list[SideSet]]:
    """For each occurrence and group what its linears are given."""
    return [
        [
            tuple(
                (bank.weights[occurrence, number], batch)
                for bank, batch in banks
                if (occurrence, number) in bank.weights
            )
            for number in range(len(occurrence_groups))
        ]
        for occurrence, occurrence_groups in enumerate(groups)
    ]


def _rank(terms: Sequence[LowRankEntry]) -> int:
    return sum(term.a.shape[0] for term in terms)


def _concatenate(
    terms: Sequence[LowRankEntry], store: WeightStore, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    a = torch.cat([store.read(term.a).float() for term in terms], 0)
    b = torch.cat([store.read(term.b).float() * float.fromhex(term.scale) for term in terms], 1)
    a, b = a.to(dtype), b.to(dtype)
    # 0 times an infinity is a NaN: padded or masked terms of one fine-tune must not reach another.
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        diags = Diagnostics()
        diags.report("BC203", "a fine-tune holds values that are not finite")
        raise DiagnosticError(diags)
    return a, b


def _stack(
    terms: Sequence[Sequence[tuple[Tensor, Tensor] | None]], rank: int, device: torch.device
) -> SideWeights:
    """``terms[member][output]``; absent outputs take no rank, since all members lack the same."""
    present = [i for i, term in enumerate(terms[0]) if term is not None]
    a_parts, outputs = [], []
    for place, output in enumerate(present):
        pairs = [pair for member in terms if (pair := member[output]) is not None]
        a_parts.append(torch.stack([_pad(a, rank, 0).t() for a, _ in pairs]))
        outputs.append(
            SideOutput(
                output=output,
                rank_start=place * rank,
                rank_stop=(place + 1) * rank,
                b=torch.stack([_pad(b, rank, 1).t() for _, b in pairs]).to(device),
            )
        )
    return SideWeights(a=torch.cat(a_parts, 2).to(device), outputs=tuple(outputs))


def _pad(tensor: Tensor, rank: int, dim: int) -> Tensor:
    missing = rank - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)
