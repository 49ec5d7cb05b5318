"""The scheduler: which rows run in the next step. A pure state machine: no I/O, no clock, no randomness, no torch.

In: requests, results of steps, the time as an argument. Out: steps and events. The engine drives it with real time,
a simulator with virtual time, the fault tests with a seeded adversary. Invariants: a request ends exactly once; what
it yields depends neither on its neighbours nor on preemption; a page that a step in flight may touch is in no other
hands before that step completes.

One idea a file: `admission` says which requests are taken on, `fair_queue` whose turn it is, `draft` fills a step,
`launches` turns its rows into launches, `scheduler` keeps requests and takes results in.
"""

from blockc_runtime.scheduler.gauges import Gauges
from blockc_runtime.scheduler.scheduler import Scheduler

__all__ = ["Gauges", "Scheduler"]
