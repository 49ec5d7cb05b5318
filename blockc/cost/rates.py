"""At what rate a device, or a cell of several, works through a step.

In: a kind of device. Out: rates that are counted on, which are parts of the catalogue's peaks.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from blockc.plan import ExecutionPlan
from blockc.spec.device_kinds import DEVICE_KINDS, DeviceKind

# Assumed until they are measured. Large products of matrices reach about half of the peak and large reads four
# fifths (Splitwise and DistServe report figures near these for A100 and H100).
COMPUTE_EFFICIENCY: Final = 0.5
MEMORY_EFFICIENCY: Final = 0.8
# What launching the kernels of one block takes, and what schedulers and samplers written in Python add.
BLOCK_S: Final = 15e-6
ROW_S: Final = 5e-6
STEP_S: Final = 500e-6
# Sides that are not in memory: read from the zoo on a local NVMe drive, and put in a slot over PCIe 4.0 x16.
READ_BYTES_PER_S: Final = 2e9
FILL_BYTES_PER_S: Final = 20e9
# One message between two devices of a node.
LINK_LATENCY_S: Final = 10e-6
# Speed-up of a cell over its width, without what its devices tell each other.
CELL_EFFICIENCY: Final = {1: 1.0, 2: 0.92, 4: 0.85, 8: 0.75}

Time = TypeVar("Time", int, float)


class Both(Protocol):
    """How long reading and computing take together, in ticks or seconds."""

    def __call__(self, reading: Time, computing: Time, /) -> Time: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRates:
    """What is counted on, of one device or of a whole cell.

    ``block_s``, ``row_s``, ``step_s``: constants for each block launched, row, and step. ``reduce_s`` and
    ``reduce_bytes_per_s``: of adding up hidden states over a cell; 0 and None for a device alone. ``sides`` and
    ``attention``: (operations, bytes) a second of fine-tunes and of attention, where they differ from all else.
    ``read_bytes_per_s``: of fine-tunes from the zoo, beside the steps; ``fill_bytes_per_s``: into a slot, before one.
    ``overlaps_reads``: a launch reads and computes at the same time, as GPUs do; False: one after the other.
    """

    flops_per_s: float
    bytes_per_s: float
    block_s: float = BLOCK_S
    row_s: float = ROW_S
    step_s: float = STEP_S
    reduce_s: float = 0.0
    reduce_bytes_per_s: float | None = None
    read_bytes_per_s: float = READ_BYTES_PER_S
    fill_bytes_per_s: float = FILL_BYTES_PER_S
    sides: tuple[float, float] | None = None
    attention: tuple[float, float] | None = None
    overlaps_reads: bool = True

    @property
    def both(self) -> Both:
        """The longer of the two, or one after the other."""
        return max if self.overlaps_reads else operator.add

    @property
    def side_rates(self) -> tuple[float, float]:
        """Operations and bytes a second of fine-tunes."""
        return self.sides or (self.flops_per_s, self.bytes_per_s)

    @property
    def attention_rates(self) -> tuple[float, float]:
        """Operations and bytes a second of attention."""
        return self.attention or (self.flops_per_s, self.bytes_per_s)


def catalogue_rates(kind: DeviceKind) -> DeviceRates | None:
    """Rates of a kind from its data sheet; None where the catalogue has none."""
    if kind.bf16_flops_per_s is None or kind.bytes_per_s is None:
        return None
    return DeviceRates(
        flops_per_s=kind.bf16_flops_per_s * COMPUTE_EFFICIENCY, bytes_per_s=kind.bytes_per_s * MEMORY_EFFICIENCY
    )


def node_link(plan: ExecutionPlan, kind: str) -> float | None:
    """Bytes a second from one device of a node to another: what the plan says, else the catalogue; None: unknown."""
    node = [device.node for device in plan.devices]
    said = [link.bytes_per_s for link in plan.links if node[link.source] == node[link.target]]
    known = DEVICE_KINDS.get(kind)
    return float(min(said)) if said else None if known is None else known.link_bytes_per_s


def slower(rates: DeviceRates, factor: float) -> DeviceRates:
    """Rates at which everything takes ``factor`` times as long."""
    reduce_rate = rates.reduce_bytes_per_s
    return replace(
        rates,
        flops_per_s=rates.flops_per_s / factor,
        bytes_per_s=rates.bytes_per_s / factor,
        block_s=rates.block_s * factor,
        row_s=rates.row_s * factor,
        step_s=rates.step_s * factor,
        reduce_s=rates.reduce_s * factor,
        reduce_bytes_per_s=None if reduce_rate is None else reduce_rate / factor,
        read_bytes_per_s=rates.read_bytes_per_s / factor,
        fill_bytes_per_s=rates.fill_bytes_per_s / factor,
        sides=_scaled(rates.sides, 1 / factor),
        attention=_scaled(rates.attention, 1 / factor),
    )


def cell_rates(rates: DeviceRates, *, width: int, link_bytes_per_s: float | None) -> DeviceRates:
    """Rates of ``width`` devices that split every matrix (a ring adds up, so each byte travels 2(m - 1)/m times).

    Raises ValueError where devices that have no link are to work together.
    """
    if width == 1:
        return rates
    if link_bytes_per_s is None:
        raise ValueError(f"{width} devices without a known link cannot work together")
    gain = width * CELL_EFFICIENCY[width]
    return replace(
        rates,
        flops_per_s=rates.flops_per_s * gain,
        bytes_per_s=rates.bytes_per_s * gain,
        sides=_scaled(rates.sides, gain),
        attention=_scaled(rates.attention, gain),
        reduce_s=LINK_LATENCY_S,
        reduce_bytes_per_s=link_bytes_per_s * width / (2 * (width - 1)),
    )


def _scaled(pair: tuple[float, float] | None, factor: float) -> tuple[float, float] | None:
    return None if pair is None else (pair[0] * factor, pair[1] * factor)
