"""The cluster of a spec: its devices, with what they have, and what links them.

In: typed blocks. Out: BC108 and BC109 for what does not hold together; a :class:`~blockc.spec.deployment.Cluster`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import cast

from blockc.diag import Diagnostics, Label, Span
from blockc.spec.deployment import NODE_LATENCY_S, Cluster, Device
from blockc.spec.device_kinds import DEVICE_KINDS
from blockc.spec.validate import Typed
from blockc.spec.valuetypes import Percentage


def check_cluster(clusters: list[Typed], start: Span, diags: Diagnostics) -> None:
    """Report what is missing, and more reserve than memory. ``start``: of the root file."""
    line = "cluster box { node local { device d0 : cpu { memory = 16GiB } } }"
    if not clusters:
        help_ = f"say what there is to run on, such as `{line}`"
        diags.report("BC108", "the spec has no `cluster`", at=start, help=help_)
        return
    network = clusters[0].one("network")
    if network is not None and "latency" in network.given and "inter_node" not in network.given:
        diags.report(
            "BC108",
            "the network has a `latency` between nodes and no `inter_node`",
            at=network.spans.get("latency", network.header),
            help="add what one node sends to another, such as `inter_node = 100Gbps`",
        )
    devices = devices_in(clusters[:1])
    if not devices and not diags.has_errors:
        message = f"the cluster `{clusters[0].name}` has no device"
        diags.report("BC108", message, at=clusters[0].header, help=f"such as `{line}`")
    for device in devices:
        memory = _memory_bytes(device)
        if memory is None and "memory" not in device.given and isinstance(device.parent, str):
            message = f"the device `{device.name}` has no `memory`"
            known = ", ".join(f"`{kind.name}`" for kind in DEVICE_KINDS.values() if kind.memory_bytes is not None)
            help_ = f"add `memory = 16GiB`: a size; these kinds bring their own: {known}"
            diags.report("BC108", message, at=device.header, help=help_)
        if memory is not None and _reserve_bytes(device, memory) >= memory:
            diags.report(
                "BC109",
                f"the device `{device.name}` reserves all of its memory",
                at=device.spans["reserve"],
                secondary=(Label(span=device.spans.get("memory", device.header), text="what it has"),),
                help="`reserve` is less than `memory`",
            )


def devices_in(clusters: Iterable[Typed]) -> list[Typed]:
    """The devices of all nodes, in the order of the spec."""
    return [device for cluster in clusters for node in cluster.all("node") for device in node.all("device")]


def cluster_of(block: Typed) -> Cluster:
    """A cluster without errors."""
    network = block.one("network")
    return Cluster(
        name=block.name,
        devices=tuple(_devices(block)),
        span=block.header,
        link_bytes_per_s=cast("Fraction | None", network.get("intra_node")) if network else None,
        node_bytes_per_s=cast("Fraction | None", network.get("inter_node")) if network else None,
        node_latency_s=cast("Fraction | None", network.get("latency") if network else None) or NODE_LATENCY_S,
    )


def _devices(cluster: Typed) -> Iterator[Device]:
    for node in cluster.all("node"):
        for device in node.all("device"):
            memory = _memory_bytes(device)
            assert memory is not None, "a device without memory was reported"
            price = cast("Fraction | None", device.get("price"))
            yield Device(
                address=f"{node.name}/{device.name}",
                kind=cast("str", device.parent),
                memory_bytes=memory,
                reserve_bytes=_reserve_bytes(device, memory),
                price_per_hour=None if price is None else price * 3600,
                span=device.header,
            )


def _memory_bytes(device: Typed) -> int | None:
    """Return what the spec says, or what the catalogue knows of the device's kind."""
    written = device.get("memory")
    if isinstance(written, int):
        return written
    kind = DEVICE_KINDS.get(device.parent) if isinstance(device.parent, str) else None
    return None if kind is None or "memory" in device.given else kind.memory_bytes


def _reserve_bytes(device: Typed, memory_bytes: int) -> int:
    """Return what is reserved; a share is rounded up: a plan never uses more than was meant."""
    reserve = device.get("reserve")
    if isinstance(reserve, Percentage):
        return -(-memory_bytes * reserve.of_whole.numerator // reserve.of_whole.denominator)
    return reserve if isinstance(reserve, int) else 0
