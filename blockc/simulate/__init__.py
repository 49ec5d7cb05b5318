"""A plan under load, before a device is rented: the runtime's own scheduler on a virtual clock.

In: a plan, and requests from a trace or a generator. Out: latencies, rates and fairness of each app. What decides is
the runtime's (`Scheduler`, `KvIndex`); what takes time is `blockc.cost`'s. Nothing here needs torch.
"""

from blockc.simulate.assign import Spread, workload_of
from blockc.simulate.chrome import chrome_trace
from blockc.simulate.expectations import check_expectations
from blockc.simulate.fleet import Fleet, fleet_of, rates_of
from blockc.simulate.generate import Load, generate, power_law, spec_loads
from blockc.simulate.promised import promised
from blockc.simulate.recorded import has_load, spec_draw
from blockc.simulate.report import AppReport, Report, Targets, report, targets_of
from blockc.simulate.robust import robust_cases
from blockc.simulate.simulate import Run, simulate
from blockc.simulate.study import FleetStudy, study, study_each
from blockc.simulate.traces import FORMATS, Trace, read_trace
from blockc.simulate.workload import Arrival, Workload, faster, first

__all__ = [
    "FORMATS",
    "AppReport",
    "Arrival",
    "Fleet",
    "FleetStudy",
    "Load",
    "Report",
    "Run",
    "Spread",
    "Targets",
    "Trace",
    "Workload",
    "check_expectations",
    "chrome_trace",
    "faster",
    "first",
    "fleet_of",
    "generate",
    "has_load",
    "power_law",
    "promised",
    "rates_of",
    "read_trace",
    "report",
    "robust_cases",
    "simulate",
    "spec_draw",
    "spec_loads",
    "study",
    "study_each",
    "targets_of",
    "workload_of",
]
