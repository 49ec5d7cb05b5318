"""What each stage of the compiler yields, as text: readable, and the same for the same input, so that it can be diffed.

In: a stage's name and result (`blockc.compiler` hands both on). Out: text without a path of this machine, a time or a
random number. Results of a stage that found errors are shown as far as they go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from blockc.render.chains import model_chains
from blockc.render.graph import graph_blocks, render_blocks
from blockc.render.models import render_models
from blockc.render.placement import render_placement
from blockc.render.segments import graph_segments
from blockc.render.structures import render_traced
from blockc.render.text import render_plan

_WIDTH = 120

_RENDERERS: Final[dict[str, Callable[[Any], str]]] = {
    "read": render_models,
    "trace": render_traced,
    "tune": model_chains,
    "share": lambda shared: model_chains(shared.chains),
    "merge": lambda merged: model_chains(merged.chains),
    "quantize": lambda quantized: model_chains(quantized.chains),
    "unify": lambda graph: f"{render_blocks(graph_blocks(graph))}\n{graph_segments(graph)}",
    "place": lambda result: render_placement(*result),
    "lower": lambda plan: render_plan(plan, width=_WIDTH),
}
STAGES: Final = tuple(_RENDERERS)


def render_stage(name: str, result: Any) -> str:
    """The text of what the stage ``name`` yielded."""
    return _RENDERERS[name](result)
