"""Merging on purpose: a hot fine-tune gets private blocks where that saves more time than it costs memory."""

from __future__ import annotations

from blockc.merge.fold import Folded, fold
from blockc.merge.merge import Merge, Merged, merge, merges_any
from blockc.merge.pays import Demand, gain
from blockc.merge.weigh import Amounts, Weighed

__all__ = ["Amounts", "Demand", "Folded", "Merge", "Merged", "Weighed", "fold", "gain", "merge", "merges_any"]
