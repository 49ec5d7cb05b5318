"""The engines of a server: one for each device that its plan uses.

In: plans, each with what of it goes to which engine. Out: engines that have them, each kept alive by a `Supervisor`.
Invariant: a plan comes into force when every engine that it needs has its part; if one of them cannot have it, all
are as they were. An engine that no plan needs any more ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from blockc.plan import dump_plan
from blockc_runtime.server.dispatch import Dispatch
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.engine_life import EngineGoneError, PlanFile
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.server.supervisor import EngineCommand, Supervisor, engine_environment
from blockc_runtime.wire.messages import Loaded, LoadFailed

Progress = Callable[[str], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanParts:
    """A plan and what of it each engine is given: files of ours."""

    epoch: int
    dispatch: Dispatch
    files: Mapping[int, PlanFile]

    def remove(self) -> None:
        """No engine will read them any more."""
        for file in self.files.values():
            file.path.unlink(missing_ok=True)


def write_parts(folder: Path, dispatch: Dispatch, data: bytes, *, epoch: int) -> PlanParts:
    """Write what each engine is given of a plan whose file holds ``data``."""
    files = {}
    for engine, part in dispatch.parts.items():
        own = data if part.plan is dispatch.plan else dump_plan(part.plan)
        path = folder / f"plan-{epoch}-{engine}.json"
        path.write_bytes(own)
        files[engine] = PlanFile(epoch=epoch, path=path, digest=hashlib.sha256(own).hexdigest())
    return PlanParts(epoch=epoch, dispatch=dispatch, files=files)


class Fleet:
    """See the module's text."""

    def __init__(
        self, client: EngineClient, command: EngineCommand, *, plan: PlanParts, metrics: Metrics, progress: Progress
    ) -> None:
        self._client = client
        client.on_past = self._on_past
        self._command = command
        self._metrics = metrics
        self._progress = progress
        self._plans = {plan.epoch: plan}  # in force, or with unfinished requests, or about to come into force
        self._ending: set[asyncio.Task[None]] = set()
        self._supervisors: dict[int, Supervisor] = {}
        for engine in plan.files:
            self._supervisors[engine] = self._supervisor(engine, plan)

    @property
    def engine_pids(self) -> dict[int, int]:
        """The processes in force, by engine."""
        found = {engine: own.engine_pid for engine, own in self._supervisors.items()}
        return {engine: pid for engine, pid in sorted(found.items()) if pid is not None}

    async def start(self) -> None:
        """Start the first engines and wait until all are ready. Raises `DiagnosticError` as soon as one is not."""
        await asyncio.gather(*(own.start() for own in self._supervisors.values()))

    async def stop(self) -> None:
        """End all engines and wait for their ends."""
        ends = [own.stop() for own in self._supervisors.values()]
        await asyncio.gather(*ends, *self._ending, return_exceptions=True)

    async def load(self, plan: PlanParts, *, alone: bool = False) -> Loaded | LoadFailed:
        """Have every engine that a plan needs make its part ready; what all of them say of it together.

        Raises `EngineGoneError` if one ends meanwhile, and `DiagnosticError` if one that is new does not start.
        """
        await asyncio.gather(*self._ending)  # one of them may be needed again
        new = {engine for engine in plan.files if engine not in self._supervisors}
        self._plans[plan.epoch] = plan
        for engine in new:
            self._supervisors[engine] = self._supervisor(engine, plan)
        answer: Loaded | LoadFailed | None = None
        try:
            answer = _together(await _all([self._load(engine, plan, engine in new, alone) for engine in plan.files]))
            return answer
        finally:
            if not isinstance(answer, Loaded):
                await self.take_back(plan, renew=alone)

    def put_in_force(self, plan: PlanParts) -> None:
        """Start engines with this plan from here on. Raises `EngineGoneError` if one that loaded it has gone."""
        if not all(self._supervisors[engine].has(plan.epoch) for engine in plan.files):
            raise EngineGoneError
        for engine, file in plan.files.items():
            self._supervisors[engine].put_in_force(file)

    async def take_back(self, plan: PlanParts, *, renew: bool = False) -> None:
        """A plan does not come into force.

        ``renew``: it was loaded in the place of the one that does: engines start again with that.
        """
        had = [own for own in self._supervisors.values() if own.has(plan.epoch)]
        self._on_past(plan.epoch)
        await asyncio.gather(*self._ending)
        if renew:
            await asyncio.gather(*(own.renew() for own in had if own in self._supervisors.values()))

    async def _load(self, engine: int, plan: PlanParts, is_new: bool, alone: bool) -> Loaded | LoadFailed:
        own, file = self._supervisors[engine], plan.files[engine]
        if not is_new:
            return await own.load(file, alone=alone)
        began_s = time.monotonic()
        await own.start()
        part = plan.dispatch.parts[engine].plan
        return Loaded(
            epoch=file.epoch, plan_digest=file.digest, kept_bytes=0,
            loaded_bytes=sum(entry.weights_bytes + entry.sides_bytes for entry in part.memory),
            kv_groups=len(part.kv_groups), kv_kept=0, load_s=time.monotonic() - began_s, longest_turn_s=0.0,
        )  # fmt: skip

    def _on_past(self, epoch: int) -> None:
        """Nothing is unfinished of a plan that is not in force: let it go, and engines that no other one needs."""
        plan = self._plans.pop(epoch, None)
        needed = {engine for other in self._plans.values() for engine in other.files}
        for engine, own in tuple(self._supervisors.items()):
            if engine in needed:
                own.retire(epoch)  # also one that has it again only now
            else:
                del self._supervisors[engine]
                ending = asyncio.ensure_future(self._end(engine, own))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
        if plan is not None:
            plan.remove()

    async def _end(self, engine: int, own: Supervisor) -> None:
        await own.stop()
        self._client.links.dismiss(engine)

    def _supervisor(self, engine: int, plan: PlanParts) -> Supervisor:
        progress = self._progress
        self._client.links.expect(engine, plan.dispatch.device(engine))
        return Supervisor(
            self._client, self._command, engine=engine, plan=plan.files[engine], metrics=self._metrics,
            progress=lambda line: progress(f"{self._client.links[engine].device}: {line}" if self._is_wide else line),
            environment=lambda: self._environment(engine, plan),
        )  # fmt: skip

    @property
    def _is_wide(self) -> bool:
        return len(self._supervisors) > 1

    def _environment(self, engine: int, plan: PlanParts) -> dict[str, str]:
        """Engines that start share the machine's cores with those that are there; of several GPUs each sees its own."""
        whole = plan.dispatch.plan
        if whole is None or len(whole.devices) == 1:
            return engine_environment()
        if whole.target == "cuda":
            return engine_environment(engine, gpus=True)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return engine_environment(cpus=max(1, cores // len(self._supervisors)) if self._is_wide else None)


async def _all(works: Iterable[Awaitable[_T]]) -> list[_T]:
    """What all yield, once all have ended. Raises what the first of them raised."""
    ended = await asyncio.gather(*works, return_exceptions=True)
    for item in ended:
        if isinstance(item, BaseException):
            raise item
    return [item for item in ended if not isinstance(item, BaseException)]


def _together(answers: list[Loaded | LoadFailed]) -> Loaded | LoadFailed:
    """A refusal if there is one, lack of room last: that may have a remedy, and others have not."""
    if failed := [answer for answer in answers if isinstance(answer, LoadFailed)]:
        return min(failed, key=lambda answer: answer.is_crowded)
    loaded = [answer for answer in answers if isinstance(answer, Loaded)]
    first = loaded[0]
    return Loaded(
        epoch=first.epoch,
        plan_digest=first.plan_digest,
        kept_bytes=sum(own.kept_bytes for own in loaded),
        loaded_bytes=sum(own.loaded_bytes for own in loaded),
        kv_groups=sum(own.kv_groups for own in loaded),
        kv_kept=sum(own.kv_kept for own in loaded),
        load_s=max(own.load_s for own in loaded),
        longest_turn_s=max(own.longest_turn_s for own in loaded),
    )
