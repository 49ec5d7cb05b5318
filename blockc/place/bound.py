"""Lower bounds on the number of devices, without a solver."""

from __future__ import annotations

from blockc.place.sizes import Sizes


def devices_bound(sizes: Sizes) -> int:
    """How many of the largest devices it takes to offer what all chains need together, each tensor once.

    Spreading chains over devices only adds to that, so no assignment does with fewer. More than there are devices
    means that none exists.
    """
    needed = sizes.least(range(len(sizes.problem.chains))).used_bytes
    offered = sorted((device.offered_bytes for device in sizes.problem.devices), reverse=True)
    count = 0
    while needed > 0 and count < len(offered):
        needed -= offered[count]
        count += 1
    return count + 1 if needed > 0 else max(1, count)
