"""Placement and graph to the plan."""

from __future__ import annotations

from blockc.lower.app_entries import isolation_group
from blockc.lower.plan import lower

__all__ = ["isolation_group", "lower"]
