"""``blockc verify``: what a plan serves against the same models run alone."""

from __future__ import annotations

from blockc.verify.verify import AppReport, failed, verify

__all__ = ["AppReport", "failed", "verify"]
