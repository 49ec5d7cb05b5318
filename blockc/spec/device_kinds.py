"""The device catalogue: what is known of a kind of device before anything is measured. One row a kind.

Memory is what the vendor's data sheet says, in decimal gigabytes: a little less than drivers report (an H100 of
"80 GB" reports 85.5e9 bytes), so that a plan made by it fits the device. A spec's own ``memory`` replaces it. Rates are
peaks: products of dense bfloat16 matrices with sums in float32, reads of the device's memory, and what one device sends
to another of its node, in one direction. `blockc.cost` says how much of a peak is counted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_GB = 10**9
_TERA = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """A kind of device. ``runtime``: what torch calls it; None: plans can be made for it, and nothing serves them yet.

    ``memory_bytes`` None: a spec has to say it. Rates None: nothing is known before it is measured.
    """

    name: str
    runtime: Literal["cpu", "cuda"] | None
    memory_bytes: int | None
    bf16_flops_per_s: float | None = None
    bytes_per_s: float | None = None
    link_bytes_per_s: float | None = None


_TABLE: tuple[DeviceKind, ...] = (
    # No data sheet: 2 cores with AVX512-bf16 measured 390 GFLOP/s (oneDNN) and 27 GB/s. Others differ by far.
    DeviceKind(
        name="cpu", runtime="cpu", memory_bytes=None, bf16_flops_per_s=0.39 * _TERA, bytes_per_s=27 * _GB
    ),
    DeviceKind(name="cuda", runtime="cuda", memory_bytes=None),
    # NVIDIA A100 Tensor Core GPU data sheet (SXM): 40 GB HBM2 at 1,555 GB/s, 80 GB HBM2e at 2,039 GB/s, 312 TFLOPS,
    # NVLink 600 GB/s both ways.
    DeviceKind(
        name="a100_40g", runtime="cuda", memory_bytes=40 * _GB,
        bf16_flops_per_s=312 * _TERA, bytes_per_s=1555 * _GB, link_bytes_per_s=300 * _GB,
    ),
    DeviceKind(
        name="a100_80g", runtime="cuda", memory_bytes=80 * _GB,
        bf16_flops_per_s=312 * _TERA, bytes_per_s=2039 * _GB, link_bytes_per_s=300 * _GB,
    ),
    # NVIDIA H100 Tensor Core GPU data sheet (SXM; the PCIe card is slower): 80 GB at 3.35 TB/s, 1,979 TFLOPS with
    # sparsity, which is twice the dense rate, NVLink 900 GB/s both ways.
    DeviceKind(
        name="h100_80g", runtime="cuda", memory_bytes=80 * _GB,
        bf16_flops_per_s=989 * _TERA, bytes_per_s=3350 * _GB, link_bytes_per_s=450 * _GB,
    ),
    # NVIDIA H200 Tensor Core GPU data sheet (SXM): 141 GB HBM3e at 4.8 TB/s, else as the H100.
    DeviceKind(
        name="h200_141g", runtime="cuda", memory_bytes=141 * _GB,
        bf16_flops_per_s=989 * _TERA, bytes_per_s=4800 * _GB, link_bytes_per_s=450 * _GB,
    ),
    # NVIDIA L40S data sheet: 48 GB GDDR6 with ECC at 864 GB/s, 362 TFLOPS dense, PCIe 4.0 x16 (64 GB/s both ways).
    DeviceKind(
        name="l40s_48g", runtime="cuda", memory_bytes=48 * _GB,
        bf16_flops_per_s=362 * _TERA, bytes_per_s=864 * _GB, link_bytes_per_s=32 * _GB,
    ),
    # NVIDIA L4 data sheet: 24 GB GDDR6 at 300 GB/s, 242 TFLOPS with sparsity, PCIe 4.0 x16.
    DeviceKind(
        name="l4_24g", runtime="cuda", memory_bytes=24 * _GB,
        bf16_flops_per_s=121 * _TERA, bytes_per_s=300 * _GB, link_bytes_per_s=32 * _GB,
    ),
    # NVIDIA Ada GPU architecture white paper, GeForce RTX 4090: 24 GB GDDR6X at 1,008 GB/s, 165.2 TFLOPS with sums in
    # float32, PCIe 4.0 x16.
    DeviceKind(
        name="rtx4090_24g", runtime="cuda", memory_bytes=24 * _GB,
        bf16_flops_per_s=165.2 * _TERA, bytes_per_s=1008 * _GB, link_bytes_per_s=32 * _GB,
    ),
    # AMD Instinct MI300X data sheet: 192 GB HBM3 at 5.3 TB/s, 1,307.4 TFLOPS, Infinity Fabric 128 GB/s both ways to
    # each of seven neighbours.
    DeviceKind(
        name="mi300x_192g", runtime=None, memory_bytes=192 * _GB,
        bf16_flops_per_s=1307.4 * _TERA, bytes_per_s=5300 * _GB, link_bytes_per_s=64 * _GB,
    ),
)  # fmt: skip

DEVICE_KINDS: dict[str, DeviceKind] = {kind.name: kind for kind in _TABLE}
