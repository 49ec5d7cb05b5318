"""Codecs for what a full fine-tune changes of a matrix, and the choice among them within an error budget."""

from __future__ import annotations

from blockc.delta.choose import Choice, choose
from blockc.delta.codecs import ADDITIVE, Encoded, decode

__all__ = ["ADDITIVE", "Choice", "Encoded", "choose", "decode"]
