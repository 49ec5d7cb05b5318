"""Plans for people."""

from __future__ import annotations

from blockc.render.text import render_plan
from blockc.render.units import format_bytes

__all__ = ["format_bytes", "render_plan"]
