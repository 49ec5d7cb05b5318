"""Placement: which chain runs on which device, with how many KV pages, and how good that is."""

from __future__ import annotations

from blockc.place.count import chain_banks, place_problem
from blockc.place.loads import unserved_rps
from blockc.place.place import decides_by_load, place
from blockc.place.problem import (
    PlaceChain,
    PlaceDevice,
    PlaceExpect,
    PlaceGroup,
    PlaceLoad,
    PlaceProblem,
    PlaceRule,
    PlaceSegment,
    PlaceSpeed,
    PlaceTurn,
)
from blockc.place.rules import least_tpot_s, place_rules
from blockc.place.tables import Placement
from blockc.place.tenants import tenant_entries
from blockc.place.turns import base_blocks, report_residency

__all__ = [
    "PlaceChain",
    "PlaceDevice",
    "PlaceExpect",
    "PlaceGroup",
    "PlaceLoad",
    "PlaceProblem",
    "PlaceRule",
    "PlaceSegment",
    "PlaceSpeed",
    "PlaceTurn",
    "Placement",
    "base_blocks",
    "chain_banks",
    "decides_by_load",
    "least_tpot_s",
    "place",
    "place_problem",
    "place_rules",
    "report_residency",
    "tenant_entries",
    "unserved_rps",
]
