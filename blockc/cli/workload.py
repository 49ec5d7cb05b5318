"""Load from the command line: a trace, a rate, or a spec's traffic.

In: what the options say. Out: what draws the load of a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockc.diag import Diagnostics
    from blockc.simulate import Workload
    from blockc.spec.deployment import Deployment

Draw = Callable[[int], "Workload"]


class TraceFormat(StrEnum):
    """Formats of traces."""

    azure = "azure"
    burstgpt = "burstgpt"
    mooncake = "mooncake"
    jsonl = "jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """A load without a trace. ``rate`` None: the spec's. Other values are those of options that were not given."""

    rate: float | None = None
    seconds: float = 600.0
    cv: float = 1.0
    prompt: int = 512
    output: int = 128
    turns: float = 1.0
    think: float = 10.0
    skew: float = 1.0


def load_draw(
    addresses: Sequence[str],
    deployment: Deployment | None,
    trace: Path | None,
    format_: TraceFormat | None,
    generator: Generator,
    diags: Diagnostics,
) -> Draw:
    """What draws the load of a seed. A trace comes before a rate, and a rate before the spec's traffic."""
    from blockc.simulate import Spread, generate, power_law, read_trace, spec_draw, workload_of

    if trace is not None:
        read = read_trace(trace, diags=diags, format_=None if format_ is None else format_.value)
        return lambda seed: workload_of(read, addresses, Spread(skew=generator.skew, seed=seed), diags=diags)
    if generator.rate is None:
        assert deployment is not None, "without trace, rate and spec there is nothing to do"
        return spec_draw(
            deployment,
            addresses,
            seconds=generator.seconds,
            prompt_tokens=generator.prompt,
            output_tokens=generator.output,
            cv=generator.cv,
            turns=generator.turns,
            think_s=generator.think,
            diags=diags,
        )
    loads = power_law(
        len(addresses),
        rate_rps=generator.rate,
        skew=generator.skew,
        prompt_tokens=generator.prompt,
        output_tokens=generator.output,
        cv=generator.cv,
        turns=generator.turns,
        think_s=generator.think,
    )
    return lambda seed: generate(loads, seconds=generator.seconds, seed=seed)
