"""A run as a trace for Perfetto or chrome://tracing: a track for each instance, counters and requests beside it.

In: a run with moments. Out: events in Chrome's trace format ("Trace Event Format", JSON array form), in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blockc.simulate.simulate import Run

_TICKS_PER_US = 10**9


def chrome_trace(run: Run) -> Iterator[dict[str, Any]]:
    """The events, one by one: a run of an hour has some hundred thousand."""
    for index, instance in enumerate(run.instances):
        process = index + 1
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": instance.name}}
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": 1, "args": {"name": "steps"}}
        for moment in instance.moments:
            start_us = moment.start / _TICKS_PER_US
            yield {
                "ph": "X",
                "name": "decode" if moment.rows == moment.tokens else "prefill",
                "pid": process,
                "tid": 1,
                "ts": start_us,
                "dur": (moment.end - moment.start) / _TICKS_PER_US,
                "args": {"steps": moment.steps, "rows": moment.rows, "tokens": moment.tokens},
            }
            yield {
                "ph": "C",
                "name": "requests",
                "pid": process,
                "ts": start_us,
                "args": {"running": moment.running, "waiting": moment.waiting},
            }
    for served in run.served:
        if served.first is None:
            continue
        app = run.fleet.apps[run.workload.arrivals[served.number].app].address
        place = {"pid": run.placed[served.number] + 1, "tid": 2, "cat": "request", "id": served.number}
        yield {"ph": "b", "name": app, "ts": run.arrived[served.number] / _TICKS_PER_US, **place}
        yield {"ph": "n", "name": "first token", "ts": served.first / _TICKS_PER_US, **place}
        yield {"ph": "e", "name": app, "ts": served.end / _TICKS_PER_US, **place}
    for index, item in enumerate(run.hand_overs):
        place = {"pid": item.target + 1, "tid": 3, "cat": "hand-over", "id": index}
        yield {
            "ph": "b",
            "name": "hand-over",
            "ts": item.left / _TICKS_PER_US,
            "args": {
                "request": item.number,
                "from": run.instances[item.source].name,
                "why": item.why,
                "kv": item.verdict,
                "bytes": item.nbytes,
            },
            **place,
        }
        yield {"ph": "e", "name": "hand-over", "ts": item.there / _TICKS_PER_US, **place}
