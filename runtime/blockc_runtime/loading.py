"""Plans made ready to serve, in the engine's process.

In: a plan's file with its digest, the zoo, and the epoch before, if there is one. Out: an `Epoch`. Invariant: what is
refused was refused before anything changed; what two plans have in common (tensors and banks by their digests, KV
groups with what is cached in them) is in memory once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from blockc.diag import refuse
from blockc.ir import parse_structure
from blockc.ir.layout import format_bytes, kernel_count
from blockc.plan import ExecutionPlan, read_plan, turning_tensors
from blockc.zoo import Zoo
from blockc_runtime.epoch import Epoch
from blockc_runtime.kv.carry import carried_groups
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import EngineLimits, engine_limits
from blockc_runtime.memory import MemoryUse, before_serving, machine_bytes
from blockc_runtime.scheduler import Scheduler
from blockc_runtime.step import Executor


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an epoch comes from: a plan's file, the SHA-256 that it must have, and the number it is called by.

    ``digest`` None: any; the first plan is what the server has just written.
    """

    number: int
    path: Path
    digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEpoch:
    """An epoch, the SHA-256 of its plan's file, what of it was in memory before, and how long it took."""

    epoch: Epoch
    digest: str
    kept_bytes: int
    loaded_bytes: int
    kv_kept: int
    load_s: float


class CrowdedError(Exception):
    """A plan fits the device, and not beside the one that is served."""


class PlanLostError(Exception):
    """A plan could not be loaded in the place of another, which is gone: only a fresh process helps."""


def load_epoch(options: argparse.Namespace, origin: Origin, *, before: Epoch | None, alone: bool) -> LoadedEpoch:
    """Load a plan beside the one before, or in its place.

    Raises `DiagnosticError` for what is wrong with it, and `CrowdedError`. With ``alone`` the epoch before is closed
    once the plan was read and counted; what fails after that raises `PlanLostError`.
    """
    began_s = time.monotonic()
    plan, digest = _read(origin)
    carried = {} if before is None or before.plan is None else carried_groups(before.plan, plan)
    if before is not None:
        _check_room(plan, before, carried, alone=alone)
    _bound_kernels(plan)
    try:
        executor, memory, kept_bytes, loaded_bytes = _executor(options, plan, before, carried, alone=alone)
    except Exception as error:
        if alone:
            raise PlanLostError(str(error)) from error
        raise
    limits = engine_limits(plan)
    kept = {} if before is None or before.kv is None else {own: before.kv.pages_of(of) for own, of in carried.items()}
    kv = KvIndex(limits, kept=kept)
    scheduler = Scheduler(
        limits, kv, epoch=origin.number, served=_served(plan, limits, before),
        sessions=None if before is None else before.scheduler.sessions,
    )  # fmt: skip
    apps = {app.chain: app.address for app in plan.apps}
    epoch = Epoch(
        number=origin.number, scheduler=scheduler, executor=executor, plan=plan, kv=kv, memory=memory,
        name=apps.__getitem__, overlaps=limits.overlaps,
    )  # fmt: skip
    before_serving()
    return LoadedEpoch(
        epoch=epoch,
        digest=digest,
        kept_bytes=kept_bytes,
        loaded_bytes=loaded_bytes,
        kv_kept=len(kept),
        load_s=time.monotonic() - began_s,
    )


class Loading:
    """An epoch that is being made ready, in a thread of its own."""

    def __init__(self, origin: Origin, load: Callable[[], LoadedEpoch]) -> None:
        self.origin = origin
        self.longest_turn_s = 0.0
        self._outcome: Future[LoadedEpoch] = Future()
        threading.Thread(target=self._run, args=(load,), name="load-plan", daemon=True).start()

    def _run(self, load: Callable[[], LoadedEpoch]) -> None:
        try:
            self._outcome.set_result(load())
        except BaseException as error:
            self._outcome.set_exception(error)

    @property
    def done(self) -> bool:
        """Whether it is ready, or will not be."""
        return self._outcome.done()

    def result(self) -> LoadedEpoch:
        """Return it, or raise what was wrong."""
        return self._outcome.result()


def _read(origin: Origin) -> tuple[ExecutionPlan, str]:
    try:
        data = origin.path.read_bytes()
    except OSError as error:
        refuse("BC003", f"cannot read the plan: {error.strerror}")
    digest = hashlib.sha256(data).hexdigest()
    if origin.digest not in (None, digest):
        refuse("BC901", "the plan file changed while the server was running")
    return read_plan(data, "the plan"), digest


def _check_room(plan: ExecutionPlan, before: Epoch, carried: Mapping[int, int], *, alone: bool) -> None:
    """Count by the plans, which say what each part of them takes. The new one's device is the old one's."""
    old = before.plan
    assert old is not None
    if plan.target != old.target:
        refuse("BC905", f"the plan is for {plan.target}, and this server runs on {old.target}")
    needed_bytes = sum(entry.used_bytes for entry in plan.memory)
    there_bytes = _device_bytes(before.executor)
    if there_bytes is not None and needed_bytes > there_bytes:
        refuse(
            "BC401",
            f"the plan counts {format_bytes(needed_bytes)} of memory, the device has {format_bytes(there_bytes)}",
        )
    if alone:
        return
    capacity_bytes = max(sum(entry.capacity_bytes for entry in own.memory) for own in (old, plan))
    if there_bytes is not None:
        capacity_bytes = min(capacity_bytes, there_bytes)
    if (both_bytes := beside_bytes(old, plan, carried)) > capacity_bytes:
        raise CrowdedError(f"{format_bytes(both_bytes)} would be needed, and there are {format_bytes(capacity_bytes)}")


def beside_bytes(old: ExecutionPlan, plan: ExecutionPlan, carried: Mapping[int, int]) -> int:
    """What two plans take at once. Steps are taken one at a time, so that on a CPU they have one workspace."""

    def tensors(of: ExecutionPlan) -> dict[str, int]:
        """Those that are always there."""
        turning = frozenset().union(*turning_tensors(of).values())
        return {
            ref.digest: ref.nbytes
            for block in of.blocks.values()
            for ref in block.tensors.values()
            if ref.digest not in turning
        }

    there, own = tensors(old), tensors(plan)
    new, every = sum(size for digest, size in own.items() if digest not in there), sum(own.values())
    weights_bytes = sum(entry.weights_bytes for entry in plan.memory)
    manifests = {chain.sides for chain in old.chains}
    adds_sides = any(chain.sides not in manifests for chain in plan.chains)
    pages = {group: count for instance in plan.instances for group, count in instance.kv_pages.items()}
    workspaces = [sum(entry.workspace_bytes for entry in of.memory) for of in (old, plan)]
    if plan.target == "cuda":  # recorded graphs compute in memory of their own, those of each plan
        workspaces[0] = 0
    return (
        sum(entry.used_bytes for entry in old.memory)
        + (weights_bytes * new // every if every else 0)
        + sum(entry.blocks_bytes for entry in plan.memory)
        + (sum(entry.sides_bytes for entry in plan.memory) if adds_sides else 0)
        + sum(count * plan.kv_groups[group].page_bytes for group, count in pages.items() if group not in carried)
        + max(0, workspaces[1] - workspaces[0])
    )


def _device_bytes(executor: Executor) -> int | None:
    """Memory of the device that steps run on."""
    of_device: Callable[[], int | None] = getattr(executor, "device_bytes", machine_bytes)
    return of_device()


def _served(plan: ExecutionPlan, limits: EngineLimits, before: Epoch | None) -> tuple[float, ...]:
    """What each tenant has been served already, for whoever was there before; others begin with the least served."""
    if before is None or before.plan is None:
        return ()
    tenants = sorted({app.tenant for app in before.plan.apps})
    counters = dict(zip(tenants, before.scheduler.service, strict=True))
    least = min(counters.values(), default=0.0)
    names = {tenant: app.tenant for tenant, app in zip(limits.tenants, plan.apps, strict=True)}
    return tuple(counters.get(names[tenant], least) for tenant in range(len(limits.weights)))


def _bound_kernels(plan: ExecutionPlan) -> None:
    """Keep as many compiled kernels as the plan counts. oneDNN reads this once, when torch first multiplies."""
    if plan.target == "cpu":
        count = kernel_count(parse_structure(text) for text in plan.structures.values())
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(count))


def memory_lines(plan: ExecutionPlan, use: MemoryUse | None) -> Iterator[str]:
    """What was loaded beside what the plan says, for the log; and whether the reserve holds the rest."""
    if use is None or len(plan.memory) != 1:
        return
    entry = plan.memory[0]
    loaded = entry.weights_bytes + entry.sides_bytes
    taken, most = format_bytes(use.weights_bytes + use.sides_bytes), format_bytes(use.loading_peak_bytes)
    yield f"weights and fine-tunes take {taken} (planned {format_bytes(loaded)}, at most {most} while loading)"
    later = format_bytes(entry.kv_bytes + entry.workspace_bytes)
    yield f"KV cache and steps will take up to {later} more"
    if entry.blocks_bytes:
        yield f"blocks that take turns will take up to {format_bytes(entry.blocks_bytes)} more"
    if use.runtime_bytes:
        needed = format_bytes(use.runtime_bytes)
        short = use.runtime_bytes > entry.reserve_bytes
        yield f"interpreter and libraries take {needed}" + (
            f", more than the device's `reserve` of {format_bytes(entry.reserve_bytes)}" if short else ""
        )


def _executor(
    options: argparse.Namespace, plan: ExecutionPlan, before: Epoch | None, carried: Mapping[int, int], *, alone: bool
) -> tuple[Executor, Callable[[], MemoryUse | None], int, int]:
    """What runs the steps, what says how much memory it holds, and the bytes of it that were kept and loaded.

    Imported only now: torch takes seconds, and `null` needs none of it.
    """
    old = None if before is None else before.executor
    from blockc_runtime.capabilities import missing, refusal, spans_devices

    is_null = options.executor == "null"
    if lacking := spans_devices(plan) if is_null else missing(plan):
        refuse("BC905", refusal(lacking))
    if is_null:
        from blockc_runtime.executor.null import NullExecutor

        same = old if isinstance(old, NullExecutor) else None
        made = NullExecutor(plan, step_s=options.null_step_s, before=same, carried=carried)
        if alone and old is not None:
            old.close()
        return made, lambda: None, 0, 0
    from blockc_runtime.executor.torch_ import TorchExecutor
    from blockc_runtime.native import library
    from blockc_runtime.ops import triton_

    if old is None:
        print(library.describe() if plan.target == "cpu" else triton_.describe(), flush=True)
    executor = TorchExecutor(
        plan, Zoo(options.zoo), device=plan.target, before=old if isinstance(old, TorchExecutor) else None,
        carried=carried, alone=alone,
    )  # fmt: skip
    for why in executor.kernel_problems if plan.target == "cuda" and triton_.problem() is None else ():
        print(f"kernels: torch's own, which are slower, for attention over a KV cache: {why}", flush=True)
    if plan.target == "cuda" and old is None:
        began_s = time.monotonic()
        said = f"recorded graphs, {executor.warm_up()} so far" if executor.records else "launched op by op"
        print(f"steps: {said} ({time.monotonic() - began_s:.1f} s)", flush=True)
    unusable = [(app.address, executor.disabled[app.chain]) for app in plan.apps if app.chain in executor.disabled]
    if unusable and old is not None:  # at a start one fine-tune that fails takes no other with it; a swap can wait
        executor.close()
        refuse("BC203", "; ".join(f"{app} cannot be served: {why}" for app, why in unusable[:5]))
    for app, why in unusable:
        print(f"{app} cannot be served: {why}", flush=True)
    return executor, executor.memory, executor.kept_bytes, executor.loaded_bytes
