"""The device catalogue: what is known of a kind of device before anything is measured. One row a kind.

Memory is what the vendor's data sheet says, in decimal gigabytes: a little less than drivers report (an H100 of
"80 GB" reports 85.5e9 bytes), so that a plan made by it fits the device. A spec's own ``memory`` replaces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """A kind of device. ``runtime``: what torch calls it; None: plans can be made for it, and nothing serves them yet.

    ``memory_bytes`` None: a spec has to say it.
    """

    name: str
    runtime: Literal["cpu", "cuda"] | None
    memory_bytes: int | None


_TABLE: tuple[DeviceKind, ...] = (
    DeviceKind(name="cpu", runtime="cpu", memory_bytes=None),
    DeviceKind(name="cuda", runtime="cuda", memory_bytes=None),
    # NVIDIA A100 Tensor Core GPU data sheet: 40 GB HBM2, 80 GB HBM2e.
    DeviceKind(name="a100_40g", runtime="cuda", memory_bytes=40 * _GB),
    DeviceKind(name="a100_80g", runtime="cuda", memory_bytes=80 * _GB),
    # NVIDIA H100 Tensor Core GPU data sheet, SXM and PCIe: 80 GB.
    DeviceKind(name="h100_80g", runtime="cuda", memory_bytes=80 * _GB),
    # NVIDIA H200 Tensor Core GPU data sheet: 141 GB HBM3e.
    DeviceKind(name="h200_141g", runtime="cuda", memory_bytes=141 * _GB),
    # NVIDIA L40S data sheet: 48 GB GDDR6 with ECC.
    DeviceKind(name="l40s_48g", runtime="cuda", memory_bytes=48 * _GB),
    # NVIDIA L4 data sheet: 24 GB GDDR6.
    DeviceKind(name="l4_24g", runtime="cuda", memory_bytes=24 * _GB),
    # NVIDIA Ada GPU architecture white paper, GeForce RTX 4090: 24 GB GDDR6X.
    DeviceKind(name="rtx4090_24g", runtime="cuda", memory_bytes=24 * _GB),
    # AMD Instinct MI300X data sheet: 192 GB HBM3.
    DeviceKind(name="mi300x_192g", runtime=None, memory_bytes=192 * _GB),
)

DEVICE_KINDS: dict[str, DeviceKind] = {kind.name: kind for kind in _TABLE}
