"""Placement: what runs where, with how much memory, and how good that is."""

from __future__ import annotations

from blockc.place.place import Placement, place
from blockc.place.problem import PlaceProblem, place_problem

__all__ = ["PlaceProblem", "Placement", "place", "place_problem"]
