"""``blockc profile PLAN -o FILE`` measures this machine with the plan's own steps, for ``blockc simulate --profile``.

In: a plan and its zoo. Out: a profile, and a line that says how well its rates tell what was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockc.cli.options import JsonOption, PlanArgument, ZooOption, zoo_of

if TYPE_CHECKING:
    from blockc.cost.profile import Profile
    from blockc.plan import ExecutionPlan


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("profile")(profile)


def profile(
    plan: PlanArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the profile goes.")] = Path(
        "profile.json"
    ),
    zoo: ZooOption = None,
    repeat: Annotated[int, typer.Option(min=1, max=100, help="How often each load runs.")] = 3,
    seconds: Annotated[float, typer.Option(min=1.0, max=1e8, help="No load begins after this time.")] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Measure steps of a plan on this machine, and fit what the simulator goes by."""
    import os
    import sys

    # Read when torch is imported: as the server sets them for its engine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

    from blockc.cli.report import print_document, reporting
    from blockc.cost import plan_work
    from blockc.cost.fit import fit_rates
    from blockc.cost.profile import profile_of, write_profile
    from blockc.diag import DiagnosticError, Diagnostics
    from blockc.measure import MeasuringError, measure
    from blockc.plan import load_plan, parts_of, require_weights
    from blockc.zoo import Zoo
    from blockc_runtime.capabilities import missing, spans_engines
    from blockc_runtime.executor.torch_ import TorchExecutor
    from blockc_runtime.memory import before_loading, before_serving

    with reporting("profile", as_json=as_json):
        whole = load_plan(plan)
        require_weights(whole)
        diags = Diagnostics()
        lacking = spans_engines(whole)
        loaded = whole if lacking else max((part.plan for part in parts_of(whole)), key=lambda own: len(own.structures))
        lacking = lacking or missing(loaded)
        if lacking:
            diags.report("BC905", f"this runtime lacks {', '.join(lacking)}")
        diags.raise_if_errors()
        before_loading()
        executor = TorchExecutor(loaded, Zoo(zoo_of(zoo, plan)), device=loaded.target)
        before_serving()

        def on_load(done: int, total: int) -> None:
            if sys.stderr.isatty():
                print(f"\r{done} of {total} loads", end="\n" if done == total else "", file=sys.stderr, flush=True)

        try:
            samples = measure(loaded, executor, repeats=repeat, budget_s=seconds, on_load=on_load)
        except MeasuringError as error:
            diags.report("BC505", f"nothing was measured: {error}", help="see that `blockc verify` passes")
            raise DiagnosticError(diags) from None
        finally:
            executor.close()
        made = profile_of(
            fit_rates(samples, plan_work(loaded)),
            device=loaded.devices[loaded.instances[0].devices[0]].kind,
            machine=_machine(loaded),
            structures=tuple(loaded.structures),
        )
        write_profile(made, output)
    if as_json:
        print_document("profile", ok=True, profile=str(output), **made.model_dump(mode="json"))
    else:
        print(_sentence(made, output))


def _machine(plan: ExecutionPlan) -> dict[str, str]:
    import os
    import platform

    import torch

    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
    }
    if plan.target == "cuda":
        found["device"] = torch.cuda.get_device_name()
    return found


def _sentence(profile: Profile, output: Path) -> str:
    rates = profile.rates
    kinds = ", ".join(f"{kind} {100 * own.bias:+.1f} %" for kind, own in profile.kinds.items())
    return (
        f"{output}: {profile.samples} steps of {profile.device}; {_giga(rates.bytes_per_s)} GB/s and "
        f"{_giga(rates.flops_per_s)} GFLOP/s {'at once' if rates.overlaps_reads else 'in turn'}, "
        f"{1e6 * rates.block_s:.3g} us a block, {1e3 * rates.step_s:.3g} ms a step; "
        f"half of the steps within {100 * profile.error_p50:.1f} % of what they took, "
        f"95 % within {100 * profile.error_p95:.1f} %; median error of {kinds}"
    )


def _giga(rate: float) -> str:
    """A rate that no step was seen to wait for has no figure: blocks' constants may stand for it (decision 0095)."""
    return f"{rate / 1e9:.3g}" if rate < 1e20 else "unlimited"
