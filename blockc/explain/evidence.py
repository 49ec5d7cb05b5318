"""What proves that a model is what its files are, although it is not kept as they are.

In: a plan's entries and evidence. Out: plain data for texts and JSON. Invariant: figures are those that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blockc.ir import QuantizedRef
from blockc.plan import BlockEntry, EvidenceManifest, ExecutionPlan, ModelEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Why the app's fine-tune has private weights (`MergeEntry`)."""

    gain: float
    private_bytes: int
    rounding: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What placement has of each goal with the app's fine-tune beside shared weights and merged (`WeighedEntry`)."""

    goals: tuple[str, ...]
    beside: tuple[float, ...]
    merged: tuple[float, ...]
    rounding: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How the app's full fine-tune is kept on another model's blocks (`SharingEntry`), and what of this block.

    ``tensors``: parameter, codec, what it lost of its change, bytes kept, bytes of its own. ``agreement``: on the
    probe; empty where nothing is lost.
    """

    verdict: str
    base: str
    lost: float
    nbytes: int
    own_bytes: int
    is_replaced: bool
    agreement: Mapping[str, Any]
    tensors: tuple[tuple[str, str, float, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """Which matrices of this block are integers (`QuantizationEntry`): how many bytes, and what they were.

    ``error``: the largest of any matrix of the ``model``; ``agreement`` of that model on the probe, empty where it was
    not measured.
    """

    model: str
    bits: int
    group: int | None
    matrices: tuple[str, ...]
    nbytes: int
    error: float
    agreement: Mapping[str, Any]


def merged_of(model: ModelEntry | None) -> Merged | None:
    """None if it was not merged."""
    return None if model is None or model.merged is None else Merged(**model.merged.model_dump())


def weighed_of(model: ModelEntry | None) -> Weighed | None:
    """None if merging it was not tried."""
    return None if model is None or model.weighed is None else Weighed(**model.weighed.model_dump())


def kept_of(model: ModelEntry | None, evidence: EvidenceManifest | None, occurrence: int) -> Kept | None:
    """None unless it is a full fine-tune on another's blocks."""
    if model is None or model.sharing is None:
        return None
    sharing, agreement = model.sharing, model.sharing.agreement
    own = () if evidence is None else tuple(item for item in evidence.tensors if item.occurrence == occurrence)
    return Kept(
        verdict=sharing.verdict,
        base=sharing.base,
        lost=sharing.lost,
        nbytes=sharing.nbytes,
        own_bytes=sharing.own_bytes,
        is_replaced=occurrence in sharing.replaced,
        agreement={} if agreement is None else agreement.model_dump(),
        tensors=tuple((item.parameter, item.codec, item.lost, item.nbytes, item.own_bytes) for item in own),
    )


def integers_of(plan: ExecutionPlan, model: str, block: BlockEntry) -> Integers | None:
    """None if none of the block's matrices is. The model is the full one that the app's model stands on."""
    held = {name: ref for name, ref in block.tensors.items() if isinstance(ref, QuantizedRef)}
    name: str | None = model
    while held and name is not None and (entry := plan.models.get(name)) is not None:
        if (found := entry.quantization) is not None:
            return Integers(
                model=name,
                bits=found.bits,
                group=found.group,
                matrices=tuple(held),
                nbytes=sum(ref.nbytes for ref in held.values()),
                error=found.error,
                agreement={} if found.agreement is None else found.agreement.model_dump(),
            )
        name = entry.parent
    return None
