"""Strings that name apps and devices of the spec: `pin` and `apart_from`.

In: typed blocks. Out: BC101 for each name that nothing has, BC109 for an app that is to be apart from itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from blockc.diag import Diagnostics
from blockc.spec.suggest import did_you_mean
from blockc.spec.validate import Typed


def check_addresses(clusters: Sequence[Typed], tenants: Sequence[Typed], diags: Diagnostics) -> None:
    """Check those of all apps."""
    nodes = [node for cluster in clusters for node in cluster.all("node")]
    places = [node.name for node in nodes] + [
        f"{node.name}/{device.name}" for node in nodes for device in node.all("device")
    ]
    apps = {f"{tenant.name}/{app.name}": app for tenant in tenants for app in tenant.all("app")}
    for address, app in apps.items():
        pin = app.get("pin")
        if isinstance(pin, str) and pin not in places:
            _unknown(f"no node or device `{pin}`", pin, places, app, "pin", diags)
        apart = app.get("apart_from")
        for other in apart if isinstance(apart, tuple) else ():
            if other == address:
                message = f"`{address}` cannot be apart from itself"
                diags.report("BC109", message, at=app.spans["apart_from"], help="name other apps")
            elif other not in apps:
                _unknown(f"no app `{other}`", other, apps, app, "apart_from", diags)


def _unknown(message: str, name: str, known: Collection[str], app: Typed, attribute: str, diags: Diagnostics) -> None:
    noun = "a node or device is one of" if attribute == "pin" else "an app is one of"
    help_ = did_you_mean(name, sorted(known), listing=noun)
    diags.report("BC101", message, at=app.spans[attribute], help=help_ or "the spec declares none")
