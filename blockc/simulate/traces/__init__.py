"""Traces of requests as files: who came when, with how many tokens. One format a file.

In: a file. Out: rows in its order, or what is wrong with which line (BC503). Formats: Azure's LLM traces, BurstGPT,
Mooncake, and JSON lines such as load generators write. None is fetched, and nothing of a trace is ever run.
"""

from blockc.simulate.traces.read import FORMATS, Trace, read_trace

__all__ = ["FORMATS", "Trace", "read_trace"]
