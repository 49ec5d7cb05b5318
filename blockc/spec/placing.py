"""What a spec asks of placement has to hold together, as far as that is seen without models.

In: typed blocks. Out: BC108 for what is missing beside something else.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockc.diag import Diagnostics
from blockc.spec.validate import Typed


def check_placing(clusters: Sequence[Typed], tenants: Sequence[Typed], diags: Diagnostics) -> None:
    """Check the cluster's links and the apps' replicas."""
    for cluster in clusters:
        network = cluster.one("network")
        if network is not None and "latency" in network.given and "inter_node" not in network.given:
            diags.report(
                "BC108",
                "the network has a `latency` between nodes and no `inter_node`",
                at=network.spans.get("latency", network.header),
                help="add what one node sends to another, such as `inter_node = 100Gbps`",
            )
    for app in (app for tenant in tenants for app in tenant.all("app")):
        if "spread" in app.given and "replicas" not in app.given:
            diags.report(
                "BC108",
                f"`{app.name}` has a `spread` and no `replicas`",
                at=app.spans.get("spread", app.header),
                help="say how many there are to be, such as `replicas = 2`",
            )
