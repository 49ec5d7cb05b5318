"""What a plan is made for: CPUs, CUDA devices, or nobody but the simulator.

In: a deployment and what was asked for. Out: the target. Invariant: a plan for a runtime is one that its devices have,
and every tensor of it exists.
"""

from __future__ import annotations

from typing import Literal

from blockc.diag import Diagnostics
from blockc.spec.deployment import Assumption, Deployment, Device
from blockc.spec.device_kinds import DEVICE_KINDS

Target = Literal["cpu", "cuda", "sim"]


def check_target(deployment: Deployment, wanted: Target | None, *, diags: Diagnostics) -> Target:
    """The target, as asked for or as the devices say. Problems go to ``diags`` (BC109, BC212)."""
    if wanted == "sim":
        return wanted
    runtimes = {_runtime(device) for device in deployment.cluster.devices}
    target: Target = wanted or ("cuda" if "cuda" in runtimes else "cpu")
    for device in deployment.cluster.devices:
        if (runtime := _runtime(device)) is None:
            diags.report(
                "BC109", f"nothing serves on a `{device.kind}` yet", at=device.span,
                help="`--target sim` makes a plan for it that can be looked at and simulated",
            )  # fmt: skip
        elif wanted is not None and target not in runtimes:
            diags.report(
                "BC109", f"`{device.address}` is a {runtime} device, the target is {target}", at=device.span,
                help="leave `--target` out: the devices say what it is; or `--target sim`",
            )  # fmt: skip
    for tune in deployment.fine_tunes.values():
        if isinstance(tune.source, Assumption):
            diags.report(
                "BC212", f"the fine-tune `{tune.name}` is assumed: it has no weights to serve", at=tune.span,
                help="plan with `--target sim`, or give `weights` in place of `assume`",
            )  # fmt: skip
    return target


def _runtime(device: Device) -> Literal["cpu", "cuda"] | None:
    return DEVICE_KINDS[device.kind].runtime
