"""Why a plan shares what it shares: evidence about one block, and what two apps have in common."""

from __future__ import annotations

from blockc.explain.find import find_app, find_occurrence
from blockc.explain.pair import Pair, explain_pair
from blockc.explain.text import pair_text, why_text
from blockc.explain.why import Why, explain_why

__all__ = ["Pair", "Why", "explain_pair", "explain_why", "find_app", "find_occurrence", "pair_text", "why_text"]
