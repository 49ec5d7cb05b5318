"""Merging on purpose: a hot fine-tune gets private blocks where that saves more time than it costs memory."""

from __future__ import annotations

from blockc.merge.fold import Folded, fold
from blockc.merge.merge import Merge, Merged, merge, merges_any
from blockc.merge.pays import Demand, gain

__all__ = ["Demand", "Folded", "Merge", "Merged", "fold", "gain", "merge", "merges_any"]
