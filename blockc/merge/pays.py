"""Whether a private copy saves time: decoding reads weights, so time is counted in bytes read for each step.

A fine-tune beside shared weights costs its sides at every step that it takes part in. Merged it costs nothing then, and
a whole model's weights whenever anybody else is decoding on the shared ones. So it pays exactly if others are rarely
there:

    P(others) * weights < SIDE_COST * sides

The presence of each fine-tune is Poisson's: requests a second times the seconds that one decodes. A spec that says
nothing of traffic leaves everybody always there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Time of a byte of sides beside that of a byte of weights (`benchmarks/fine_tunes.py` measures it).
SIDE_COST = 1.0
_DEFAULT_OUTPUT_TOKENS = 256
# What one token takes, where no target says: what an interactive service is usually held to.
_DEFAULT_TOKEN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Expected load of one app. ``rate_rps`` None: unknown, and taken to be always there."""

    rate_rps: float | None
    output_tokens: int | None
    token_s: float | None

    @property
    def present(self) -> float:
        """The mean number of its requests that are decoding."""
        if self.rate_rps is None:
            return math.inf
        return self.rate_rps * (self.output_tokens or _DEFAULT_OUTPUT_TOKENS) * (self.token_s or _DEFAULT_TOKEN_S)


def busy(demands: Iterable[Demand]) -> float:
    """The probability that any of these apps is decoding."""
    return 1.0 - math.exp(-sum(demand.present for demand in demands))


def gain(*, own: Iterable[Demand], others: Iterable[Demand], sides_bytes: int, weights_bytes: int) -> float:
    """The share of a step's time that merging saves, on average; negative where it costs time.

    ``others``: the apps that decode on the same weights; ``weights_bytes``: those that the fine-tune would have for
    itself.
    """
    mine = busy(own)
    saved = SIDE_COST * sides_bytes - busy(others) * weights_bytes
    return mine * saved / (weights_bytes + SIDE_COST * sides_bytes) if weights_bytes else 0.0
