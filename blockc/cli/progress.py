"""Progress on stderr: a line per stage, so that logs and terminals read alike."""

from __future__ import annotations

import sys
from collections.abc import Callable


def stage_lines() -> Callable[[str, float], None]:
    """A listener that prints ``stage: seconds`` when a stage has ended."""

    def on_stage(name: str, seconds: float) -> None:
        print(f"{name:>8} {seconds:7.2f} s", file=sys.stderr, flush=True)

    return on_stage
