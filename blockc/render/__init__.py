"""Plans, and what the compiler has on the way to them, for people."""

from __future__ import annotations

from blockc.render.stages import STAGES, render_stage
from blockc.render.text import render_plan
from blockc.render.units import counted, format_bytes, printable, short

__all__ = ["STAGES", "counted", "format_bytes", "printable", "render_plan", "render_stage", "short"]
