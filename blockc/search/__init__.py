"""The free knobs of a spec, tried against the simulator.

In: a deployment that has been prepared, and its load. Out: what was tried, and the best. Blocks are traced and merged
once; each try is a placement and a simulation.
"""

from blockc.search.knobs import KNOBS, Knob, free_knobs, written
from blockc.search.search import Found, Tried, search

__all__ = ["KNOBS", "Found", "Knob", "Tried", "free_knobs", "search", "written"]
