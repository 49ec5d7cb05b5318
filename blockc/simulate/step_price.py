"""How long a step takes on an instance.

In: a step, and the instance's prices. Out: ticks, and the tokens that it has read. Invariant: a part of a segment's
blocks costs that part of what all of them cost, rounded down. What the host does
for a step that was issued while another ran is done before it starts: the longer one of that and of the rest counts.
"""

from __future__ import annotations

from blockc.cost import StepPricer
from blockc_runtime.limits import EngineLimits
from blockc_runtime.step import Step


def step_price(step: Step, pricer: StepPricer, limits: EngineLimits, *, is_behind: bool = False) -> tuple[int, int]:
    """A step's price, and its tokens. ``is_behind``: it was issued while another one ran."""
    price, tokens = _price(step, pricer, limits)
    return behind(price, pricer.constant(len(step.rows))) if is_behind else price, tokens


def behind(price: int, constant: int) -> int:
    """What a step of ``price`` takes behind another one. ``constant``: what of it the host takes."""
    return max(constant, price - constant)


def _price(step: Step, pricer: StepPricer, limits: EngineLimits) -> tuple[int, int]:
    if any(row.blocks is not None for row in step.rows):
        return _in_parts(step, pricer, limits)
    tokens: dict[int, int] = {}
    samples: dict[int, int] = {}
    total = _constant(step, pricer)
    for row in step.rows:
        count, chain = len(row.tokens), row.chain
        tokens[chain] = tokens.get(chain, 0) + count
        if row.samples:
            samples[chain] = samples.get(chain, 0) + 1
        total += pricer.attention(chain, row.start, count)
    return total + pricer.launches(tokens, samples), sum(tokens.values())


def _constant(step: Step, pricer: StepPricer) -> int:
    return pricer.constant(len(step.rows)) + sum([pricer.fill(fill.chain) for fill in step.fills])


def _in_parts(step: Step, pricer: StepPricer, limits: EngineLimits) -> tuple[int, int]:
    """Where rows pass a part of the layers only."""
    chains = limits.chains
    sizes = {s: count for chain in chains for s, count in zip(chain.segments, chain.blocks, strict=True)}
    total = _constant(step, pricer)
    for launch in step.launches:
        size = sizes[launch.segment]
        first, stop = launch.blocks or (0, size)
        rows = [step.rows[row] for row in launch.rows]
        whole = pricer.launch(launch.segment, sum([len(row.tokens) for row in rows]))
        total += whole * (stop - first) // size
        if stop == size and (samples := sum([row.samples for row in rows])):
            total += pricer.launch(launch.segment, 1, samples=samples) - pricer.launch(launch.segment, 1)
    passed: dict[tuple[int, tuple[int, int]], int] = {}
    for row in step.rows:
        every = sum(chains[row.chain].blocks)
        own = row.blocks or (0, every)
        total += pricer.attention(row.chain, row.start, len(row.tokens)) * (own[1] - own[0]) // every
        passed[row.chain, own] = passed.get((row.chain, own), 0) + len(row.tokens)
    for (chain, (first, stop)), count in passed.items():
        total += pricer.sides(chain, count) * (stop - first) // sum(chains[chain].blocks)
    return total, sum([len(row.tokens) for row in step.rows if row.request not in step.parked])
