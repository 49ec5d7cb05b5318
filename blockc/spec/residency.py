"""What a spec says of blocks that are not always on the device: that it can be meant, and has the room it needs.

In: typed blocks. Out: diagnostics (BC108, BC109).
"""

from __future__ import annotations

from collections.abc import Iterable

from blockc.diag import Diagnostics, Label
from blockc.spec.cluster import devices_in
from blockc.spec.validate import Typed


def check_residency(
    clusters: Iterable[Typed], policies: Iterable[Typed], fine_tunes: Iterable[Typed], diags: Diagnostics
) -> None:
    """Report fine-tunes whose blocks come and go without room for them, and hosts whose memory is a device's own."""
    room = next((residency for policy in policies if (residency := policy.one("residency")) is not None), None)
    cpus = [device for device in devices_in(clusters) if device.parent == "cpu"]
    turning = [block for block in fine_tunes if block.get("residency") in ("stream", "cold")]
    for block in turning:
        if room is None or "blocks" not in room.given:
            word = block.get("residency")
            diags.report(
                "BC108",
                f"`{block.name}` is to be `{word}`, and the policy gives such blocks no memory",
                at=block.spans["residency"],
                help="add `policy { residency { blocks = 8GiB } }`: as much as the largest of them takes, or more",
            )
    streams = [(f"`{block.name}`", block.spans["residency"]) for block in turning if block.get("residency") == "stream"]
    if room is not None and "host" in room.given:
        streams.append(("`host`", room.spans.get("host", room.header)))
    for name, span in streams if cpus else []:
        diags.report(
            "BC109",
            f"{name}: a `cpu` has no memory beside its host's",
            at=span,
            secondary=(Label(span=cpus[0].header, text="its memory is the host's"),),
            help="`cold` reads from the zoo when a request comes, `pin` keeps it in memory; leave `host` out",
        )
    if room is not None and "host" in room.given and "blocks" not in room.given and not cpus:
        diags.report(
            "BC108",
            "`host` keeps blocks that wait for room on a device, and there is no `blocks`",
            at=room.spans.get("host", room.header),
            help="add `blocks = 8GiB`: what they may take of a device",
        )
