"""The sides of a segment's fine-tunes, stacked in banks.

In: the manifests of the chains that pass the segment. Out: banks of fine-tunes alike in rank, sites and codecs, their
tensors stacked per site; per launch, which rows use which.
Invariant: a bank's slot holds one chain's sides and nothing else; a chain that fails to load is in no bank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir import Side, SiteKind
from blockc.ir.layout import padded_rank
from blockc.plan import SideManifest
from blockc_runtime.executor.batch import TokenBatch
from blockc_runtime.executor.program import LinearGroup, SiteGroup
from blockc_runtime.executor.weights import WeightStore
from blockc_runtime.ops.linear.sides import SideOutput, SideWeights
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
    """What sides must have in common to be stacked: each codec once."""
    return " ".join(sorted({term.codec for term in side.terms}))


def check_values(side: Side, store: WeightStore, dtype: torch.dtype) -> None:
    """Raises `DiagnosticError` (BC203) for values that are not finite, before anybody is served with them."""
    for term in side.terms:
        for _, ref in term.tensors:
            tensor = store.read(ref)
            if tensor.is_floating_point() and not torch.isfinite(tensor.to(dtype)).all():
                _refuse()
            store.release(ref)
    if side.rank:
        read_low_rank(side, store, dtype)


def read_low_rank(side: Side, store: WeightStore, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A ``[r, in]`` and B ``[out, r]``: terms side by side, scale folded in in float32, then cast to ``dtype``."""
    terms = side.of("low_rank")
    a = torch.cat([store.read(term["a"]).float() for term in terms], 0)
    b = torch.cat([store.read(term["b"]).float() * float(term.scalar("scale")) for term in terms], 1)
    for term in terms:
        store.release(term["a"])
        store.release(term["b"])
    a, b = a.to(dtype), b.to(dtype)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        _refuse()
    return a, b


def _refuse() -> NoReturn:
    diags = Diagnostics()
    diags.report("BC203", "a fine-tune holds values that are not finite")
    raise DiagnosticError(diags)


def build_banks(
    chains: Mapping[int, ChainSides],
    *,
    first: Mapping[int, int],
    groups: Sequence[tuple[LinearGroup | SiteGroup, ...]],
    store: WeightStore,
    dtype: torch.dtype,
) -> tuple[Bank, ...]:
    """Banks of one segment. ``first[chain]``: its first occurrence in the chain; ``groups``: per occurrence."""
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
                    weights[occurrence, number] = _STACKS[group.kind](outputs, rank, store, dtype)
        if weights:
            banks.append(Bank(slots={chain: slot for slot, chain in enumerate(members)}, weights=weights))
    return tuple(banks)


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


# For each output of a group the side of each member, None for all of them where they have none.
_Places = Sequence[Sequence[Side | None]]


def _stack_linears(places: _Places, rank: int, store: WeightStore, dtype: torch.dtype) -> SideWeights:
    """Outputs without sides take no rank, since all members lack the same.

    Filled in place, one side at a time: with many fine-tunes the parts of a stack are as large as the stack.
    """
    held = {
        output: [side for side in members if side is not None]
        for output, members in enumerate(places)
        if members[0] is not None
    }
    slots, inputs = len(places[0]), next(iter(held.values()))[0].terms[0]["a"].shape[1]
    a = torch.zeros((slots, inputs, rank * len(held)), dtype=dtype, device=store.device)
    outputs: list[SideOutput] = []
    for number, (output, members) in enumerate(held.items()):
        start = rank * number
        b = torch.zeros((slots, rank, members[0].terms[0]["b"].shape[0]), dtype=dtype, device=store.device)
        for slot, side in enumerate(members):
            own_a, own_b = read_low_rank(side, store, dtype)
            a[slot, :, start : start + len(own_a)] = own_a.t()
            b[slot, : own_b.shape[1]] = own_b.t()
        outputs.append(SideOutput(output=output, rank_start=start, rank_stop=start + rank, b=b))
    return SideWeights(a=a, outputs=tuple(outputs))


def _stack_vectors(places: _Places, rank: int, store: WeightStore, dtype: torch.dtype) -> Tensor:
    """``[N, n]``."""
    del rank
    return torch.stack([store.read(side.terms[0]["value"]).to(dtype) for side in places[0] if side is not None])


_STACKS: Mapping[SiteKind, Callable[[_Places, int, WeightStore, torch.dtype], Any]] = {
    "linear": _stack_linears,
    "vector": _stack_vectors,
}
