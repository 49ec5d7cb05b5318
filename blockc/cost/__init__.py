"""What a step costs, before anything runs: bytes to read, products to make, and the rates of devices.

In: a plan and the kinds of its devices. Out: seconds. The roofline of each launch (Williams, Waterman, Patterson, CACM
2009): what it reads by the memory's rate or what it computes by the arithmetic's, whichever is longer, and a constant
for each block, row and step. Rates come from the device catalogue, times the part of a peak that is counted on.
"""

from blockc.cost.graph import graph_work
from blockc.cost.instance import instance_prices, with_prices
from blockc.cost.price import TICKS_PER_S, Affine, StepPricer, ticks
from blockc.cost.rates import DeviceRates, catalogue_rates, cell_rates, node_link, slower
from blockc.cost.work import AttentionWork, ChainWork, PlanWork, SegmentWork, plan_work, stage_works

__all__ = [
    "TICKS_PER_S",
    "Affine",
    "AttentionWork",
    "ChainWork",
    "DeviceRates",
    "PlanWork",
    "SegmentWork",
    "StepPricer",
    "catalogue_rates",
    "cell_rates",
    "graph_work",
    "instance_prices",
    "node_link",
    "plan_work",
    "slower",
    "stage_works",
    "ticks",
    "with_prices",
]
