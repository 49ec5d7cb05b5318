"""Another plan while serving.

In: a plan's file. Out: what changed, or a refusal after which everything is as it was. Invariant: apps, tokenizers,
keys that the plan names, the plan, its page and what engines start with change in one step of the event loop, once the
engine has the new plan beside the old one. What was submitted before ends on the plan it began with.

Where the device cannot hold both plans, new requests are held back until those in flight have ended, then the engine
loads the new plan in the old one's place; nobody is refused for that.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from blockc.diag import DiagnosticError, Diagnostics, refuse
from blockc.ir.layout import format_bytes
from blockc.plan import ExecutionPlan, plan_uses, read_plan, require_weights
from blockc.zoo import Zoo
from blockc_runtime.server.auth import KeyRing, Keys
from blockc_runtime.server.catalogue import Catalogue, load_catalogue
from blockc_runtime.server.dispatch import Dispatch, dispatch_of, on_node
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.engine_life import EngineGoneError
from blockc_runtime.server.errors import ApiError, unavailable
from blockc_runtime.server.fleet import Fleet, PlanParts, write_parts
from blockc_runtime.server.key_sources import KeySources
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.wire.messages import Loaded, LoadFailed

_PATIENCE_S = 600.0
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInForce:
    """``plan``: what is served of it here; ``data``: its file; ``digest``: the SHA-256 of that, in hexadecimal."""

    plan: ExecutionPlan
    data: bytes
    digest: str

    @classmethod
    def of(cls, plan: ExecutionPlan, data: bytes) -> PlanInForce:
        """Of a file that was read."""
        return cls(plan=plan, data=data, digest=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """What is in force with a plan. ``keys`` None: nobody is asked for one."""

    new: PlanInForce
    dispatch: Dispatch
    catalogue: Catalogue
    keys: Keys | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppChanges:
    """Apps by their addresses, sorted. ``changed``: another version of the model answers."""

    came: tuple[str, ...]
    gone: tuple[str, ...]
    changed: tuple[str, ...]


def app_changes(old: ExecutionPlan, new: ExecutionPlan) -> AppChanges:
    """Compare what two plans serve."""
    before = {app.address: old.chains[app.chain].digest for app in old.apps}
    after = {app.address: new.chains[app.chain].digest for app in new.apps}
    return AppChanges(
        came=tuple(sorted(after.keys() - before.keys())),
        gone=tuple(sorted(before.keys() - after.keys())),
        changed=tuple(sorted(app for app in before.keys() & after.keys() if before[app] != after[app])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapReport:
    """What a swap did. ``loaded`` None: the plan was in force already.

    ``pause_s``: how long new requests were held back; ``beside``: whether both plans were in memory at once.
    """

    plan: str
    changes: AppChanges
    loaded: Loaded | None
    beside: bool
    pause_s: float

    def document(self) -> dict[str, Any]:
        """As clients get it."""
        loaded = self.loaded
        return {
            "plan": self.plan,
            "swapped": loaded is not None,
            "apps": {
                "came": list(self.changes.came), "gone": list(self.changes.gone), "changed": list(self.changes.changed),
            },
            "bytes": {
                "kept": 0 if loaded is None else loaded.kept_bytes,
                "loaded": 0 if loaded is None else loaded.loaded_bytes,
            },
            "kv_groups": {
                "all": 0 if loaded is None else loaded.kv_groups, "kept": 0 if loaded is None else loaded.kv_kept,
            },
            "beside": self.beside,
            "load_s": 0.0 if loaded is None else round(loaded.load_s, 4),
            "longest_turn_s": 0.0 if loaded is None else round(loaded.longest_turn_s, 4),
            "pause_s": round(self.pause_s, 4),
        }  # fmt: skip


class Swaps:
    """One swap at a time. ``fleet`` is set once there is one. ``keys`` None: nobody is asked for one.

    ``folder``: where what engines are given is written. ``node``: whose part of a plan is served.
    """

    def __init__(
        self,
        *,
        client: EngineClient,
        catalogue: Catalogue,
        metrics: Metrics,
        zoo: Path,
        in_force: PlanInForce,
        folder: Path,
        progress: Callable[[str], None],
        patience_s: float = _PATIENCE_S,
        keys: KeyRing | None = None,
        sources: KeySources | None = None,
        node: str | None = None,
    ) -> None:
        self.in_force = in_force
        self.fleet: Fleet | None = None
        self._folder, self._node = folder, node
        self._client = client
        self._catalogue = catalogue
        self._metrics = metrics
        self._zoo = zoo
        self._progress = progress
        self._patience_s = patience_s
        self._keys = keys
        self._sources = KeySources() if sources is None else sources
        self._epochs = client.epoch
        self._lock = asyncio.Lock()
        self._work: asyncio.Task[SwapReport] | None = None

    def end(self) -> None:
        """The server is ending: give up what is under way."""
        if self._work is not None:
            self._work.cancel()

    async def ended(self) -> None:
        """Wait until nothing is under way."""
        async with self._lock:
            pass

    async def apply(self, data: bytes, *, allow: Callable[[AppChanges], None] = lambda changes: None) -> SwapReport:
        """Swap to the plan whose file holds ``data``.

        ``allow`` may raise for what would change. Raises `DiagnosticError` for what is wrong with the plan, and
        `ApiError`: 409 while another swap is under way, 503 where there is no engine.
        """
        if self._lock.locked():
            raise ApiError(409, "another plan is being swapped in; try again later", code="swap_under_way")
        async with self._lock:
            began_s = time.monotonic()
            self._work = asyncio.create_task(self._apply(data, allow))
            try:
                report = await self._work
            except asyncio.CancelledError:
                if not self._client.draining:
                    raise
                raise unavailable("the server is ending") from None
            except Exception as error:
                self._metrics.observe_swap(None, 0.0)
                self._progress(f"a plan was refused: {_first(error)}")
                raise
            if report.loaded is not None:
                self._metrics.observe_swap(report.loaded, report.pause_s)
                self._progress(_line(report, time.monotonic() - began_s))
            return report

    async def _apply(self, data: bytes, allow: Callable[[AppChanges], None]) -> SwapReport:
        fleet = self.fleet
        if fleet is None or not self._client.serving:
            raise unavailable("the server is ending" if self._client.draining else "there is no engine")
        self._epochs += 1
        served = await asyncio.to_thread(self._read, data, self._epochs)
        new, changes = served.new, app_changes(self.in_force.plan, served.new.plan)
        allow(changes)
        if data == self.in_force.data:
            return SwapReport(plan=new.digest, changes=changes, loaded=None, beside=True, pause_s=0.0)
        if failed := [engine for engine in served.dispatch.engines if self._client.links.has_failed(engine)]:
            devices = ", ".join(map(served.dispatch.device, failed))
            raise unavailable(f"the engine of {devices} cannot be started: apply a plan that does without")
        parts = await asyncio.to_thread(write_parts, self._folder, served.dispatch, data, epoch=self._epochs)
        try:
            answer = await fleet.load(parts)
            if isinstance(answer, LoadFailed) and answer.is_crowded:
                self._progress(f"both plans do not fit ({answer.message}): new requests wait until those in flight end")
                # What was taken back is gone.
                parts = await asyncio.to_thread(write_parts, self._folder, served.dispatch, data, epoch=self._epochs)
                return await self._in_its_place(fleet, parts, served, changes)
            loaded = _require(answer)
            began_s = time.monotonic()
            await self._flip(fleet, parts, served, alone=False)
        except EngineGoneError:
            raise unavailable("an engine ended while it loaded the plan; the one before is served") from None
        finally:
            if self._client.epoch != parts.epoch:
                parts.remove()
        pause_s = time.monotonic() - began_s
        return SwapReport(plan=new.digest, changes=changes, loaded=loaded, beside=True, pause_s=pause_s)

    async def _in_its_place(self, fleet: Fleet, parts: PlanParts, served: _Served, changes: AppChanges) -> SwapReport:
        """Hold new requests back, wait for those in flight, swap, let them in."""
        began_s = time.monotonic()
        self._client.hold()
        try:
            try:
                await asyncio.wait_for(self._client.idle(), self._patience_s)
            except TimeoutError:
                raise ApiError(
                    409,
                    "both plans do not fit in memory, and what is in flight did not end within "
                    f"{self._patience_s:.0f} s",
                    code="requests_in_flight",
                ) from None
            loaded = _require(await fleet.load(parts, alone=True))
            await self._flip(fleet, parts, served, alone=True)
        finally:
            self._client.let_in()
        pause_s = time.monotonic() - began_s
        return SwapReport(plan=served.new.digest, changes=changes, loaded=loaded, beside=False, pause_s=pause_s)

    async def _flip(self, fleet: Fleet, parts: PlanParts, served: _Served, *, alone: bool) -> None:
        """All at once: nothing here waits, unless an engine that has loaded the plan is gone by now.

        ``alone``: it was loaded in the place of the one before.
        """
        try:
            fleet.put_in_force(parts)
        except EngineGoneError:
            await fleet.take_back(parts, renew=alone)
            raise
        self.in_force = served.new
        self._catalogue.replace(served.catalogue)
        if self._keys is not None and served.keys is not None:
            self._keys.replace(replace(self._keys.keys, secrets=served.keys.secrets))
        self._client.move_to(parts.epoch, served.dispatch)
        self._metrics.predict_memory(served.new.plan)
        self._metrics.show_plan(served.new.digest)

    def _read(self, data: bytes, epoch: int) -> _Served:
        """Whatever can be wrong with a plan, before an engine is told of it."""
        whole = read_plan(data, "what was sent")
        require_weights(whole)
        plan = on_node(whole, self._node)
        zoo = Zoo(self._zoo)
        _require_there(plan, zoo)
        catalogue = load_catalogue(plan, zoo, self._progress, epoch=epoch)
        return _Served(
            new=PlanInForce.of(plan, data), dispatch=dispatch_of(plan), catalogue=catalogue,
            keys=self._keys_with(catalogue),
        )  # fmt: skip

    def _keys_with(self, catalogue: Catalogue) -> Keys | None:
        """Those of the file as they are, and the secrets that a plan names."""
        named = catalogue.key_secrets
        if self._keys is not None:
            return self._sources.beside(self._keys.keys, named)
        if any(named.values()):
            refuse(
                "BC905",
                "the plan gives keys to its tenants, and this server asks nobody for one",
                "start `blockc serve` with this plan",
            )
        return None


def _require_there(plan: ExecutionPlan, zoo: Zoo) -> None:
    """Refuse a plan of which the zoo lacks anything that serving needs. Raises `DiagnosticError` (BC903, BC904)."""
    problems = Diagnostics()
    blobs = zoo.blobs()
    lacking = {
        use.digest: use.what
        for use in plan_uses(plan, zoo.blob, problems)
        if not use.what.startswith("evidence of") and not (
            use.digest in blobs if use.tensor is None else zoo.has_tensor(use.digest)
        )
    }  # fmt: skip
    for digest, what in list(lacking.items())[:_SHOWN]:
        problems.report("BC904", f"the zoo lacks {digest[:12]}: {what}", help="compile to the zoo that is served from")
    if len(lacking) > _SHOWN:
        problems.report("BC904", f"the zoo lacks {len(lacking) - _SHOWN} more tensors and blobs of the plan")
    problems.raise_if_errors()


def _require(answer: Loaded | LoadFailed) -> Loaded:
    if isinstance(answer, LoadFailed):
        refuse(answer.code, answer.message)
    return answer


def _first(error: Exception) -> str:
    if isinstance(error, DiagnosticError):
        item = next(iter(error.diagnostics))
        return f"{item.code.id}: {item.message}"
    return str(error)


def _line(report: SwapReport, took_s: float) -> str:
    changes, loaded = report.changes, report.loaded
    assert loaded is not None
    return (
        f"plan {report.plan[:12]} is in force after {took_s:.1f} s: {len(changes.came)} apps came, "
        f"{len(changes.gone)} went, {len(changes.changed)} changed; {format_bytes(loaded.kept_bytes)} kept, "
        f"{format_bytes(loaded.loaded_bytes)} loaded; new requests waited {report.pause_s * 1000:.1f} ms"
    )
