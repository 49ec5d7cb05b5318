"""Chains run at compile time, to measure what a change of their weights does."""

from __future__ import annotations

from blockc.evaluate.measure import Agreement, compare
from blockc.evaluate.probe import Probe, ProbeError, probe_of, read_probe, report_probe
from blockc.evaluate.run import logits

__all__ = ["Agreement", "Probe", "ProbeError", "compare", "logits", "probe_of", "read_probe", "report_probe"]
