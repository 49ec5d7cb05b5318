"""A plan as one HTML file: devices, chains, sharing, solver, what changes against another plan, and live figures."""

from __future__ import annotations

from blockc.render.page.document import Page, render_page
from blockc.render.page.picture import render_svg

__all__ = ["Page", "render_page", "render_svg"]
