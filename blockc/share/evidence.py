"""What proves that a full fine-tune on shared blocks is what it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockc.evaluate import Agreement, Probe

Verdict = Literal["exact", "delta", "approx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEvidence:
    """How one tensor that differs is kept beside the shared one. ``codec``: its terms, such as ``sign``.

    ``lost`` of its change and ``error`` of the tensor, relative Frobenius norms, measured; 0 where it is exact.
    """

    occurrence: int
    parameter: str
    codec: str
    lost: float
    error: float
    nbytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """``verdict``: the weakest of its blocks'. ``base``: whose blocks; ``shared`` of ``differing`` blocks are its own.

    ``agreement`` with the original on the probe, None where all is exact; ``replaced``: occurrences that are another
    model's block as it is.
    """

    verdict: Verdict
    base: str
    differing: int
    shared: int
    tensors: tuple[TensorEvidence, ...]
    replaced: tuple[int, ...] = ()
    agreement: Agreement | None = None
    probe: Probe | None = None
