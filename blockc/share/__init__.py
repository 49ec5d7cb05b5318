"""Full fine-tunes on the blocks of what they derive from: exactly, as deltas, or by blocks that are similar enough."""

from __future__ import annotations

from blockc.share.evidence import Evidence, TensorEvidence
from blockc.share.share import Shared, share

__all__ = ["Evidence", "Shared", "TensorEvidence", "share"]
