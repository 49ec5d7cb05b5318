"""What this runtime can do, held against what a plan requires.

In: a plan, whose ``requires`` lists entries such as ``dtype:BF16``, ``op:blockc.attention``, ``device:cuda``. Out:
those that this runtime, with this torch on this machine, lacks; ``instances:2`` where it is more than one engine runs.
Torch is imported only when asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockc.ir.ops import OPS
from blockc.plan import FORMAT_VERSION, ExecutionPlan

_DTYPES = ("BF16", "F32")
_CACHES = (*_DTYPES, "F8_E4M3", "I8")
_SIDES = (
    "bottleneck@residual",
    "cached@cache",
    "bias@linear",
    "group_int24@linear",
    "group_int@linear",
    "low_rank@embed",
    "low_rank_int8@linear",
    "sign@linear",
    "sparse@linear",
    "rows@embed",
    "in_scale@linear",
    "low_rank@linear",
    "out_scale@linear",
    "rows@linear",
    "value@vector",
)


_WHY = {
    "devices": "an instance on several devices, a cell or a pipeline, is simulated so far, and not served",
    "instances": "an engine runs one instance, a part of such a plan",
    "roles": "instances that read prompts for others are simulated so far, and not served",
}


def missing(plan: ExecutionPlan) -> tuple[str, ...]:
    """Return what an engine cannot meet: of ``plan.requires``, in their order, and instances beyond its own."""
    return (*(entry for entry in plan.requires if not _has(entry)), *_several(plan))


def spans_devices(plan: ExecutionPlan) -> tuple[str, ...]:
    """Those of `missing` that no executor can make up for: what takes several devices at once."""
    return (*spans_engines(plan), *_several(plan))


def spans_engines(plan: ExecutionPlan) -> tuple[str, ...]:
    """Those of `spans_devices` that are not met by an engine for each instance, either."""
    return tuple(entry for entry in plan.requires if _kind(entry) in _WHY and not _has(entry))


def _several(plan: ExecutionPlan) -> tuple[str, ...]:
    return (f"instances:{len(plan.instances)}",) if len(plan.instances) > 1 else ()


def refusal(lacking: Sequence[str]) -> str:
    """What to tell of a plan that requires these."""
    why = "; ".join(dict.fromkeys(_WHY[_kind(entry)] for entry in lacking if _kind(entry) in _WHY))
    return f"this runtime lacks {', '.join(lacking)}{f' ({why})' if why else ''}"


def _kind(entry: str) -> str:
    return entry.partition(":")[0]


def _has(entry: str) -> bool:
    kind, _, what = entry.partition(":")
    match kind:
        case "format":
            return what == str(FORMAT_VERSION)
        case "dtype":
            return what in _DTYPES
        case "kv":
            return what in _CACHES
        case "op":
            return what in OPS and _has_op(what)
        case "side":
            return what in _SIDES
        case "input":
            return what == "virtual"
        case "output":
            return what in ("scores", "token_scores", "vector")
        case "turns":
            return what in ("host", "zoo")
        case "device":
            return what == "cpu" or (what == "cuda" and _has_cuda())
        case "devices":
            return what == "1"
        case _:
            return False


def _has_op(name: str) -> bool:
    """Ours are all there; an ATen op may be younger than the torch that is installed."""
    if name.startswith("blockc."):
        return True
    from blockc_runtime.ops.aten import aten_function

    try:
        aten_function(name)
    except AttributeError:
        return False
    return True


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
