"""Keeps the engine process of one device alive.

In: the command that starts an engine. Out: an `EngineClient` that is attached whenever the engine
is ready. Invariant: there is at most one engine process, and none once `stop` has returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from blockc.diag import CODES, DiagnosticError, Diagnostics, refuse
from blockc_runtime.server.dispatch import ALONE
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.engine_life import EngineConnection, EngineGoneError, EngineLife, PlanFile
from blockc_runtime.server.metrics import Metrics
from blockc_runtime.wire.messages import EngineError, Loaded, LoadFailed, Retire

EngineCommand = Callable[[Path, PlanFile], Sequence[str]]

_FAILED_STARTS = 3
_BACKOFF_S = (0.0, 0.1, 0.5, 2.0)
_STABLE_S = 10.0
_PLAN_LOST = "the plan that this request began with cannot be loaded again"
_HELP = {
    "BC903": "delete the file that it names and compile again: the zoo stores again what it lacks",
    "BC904": "compile the spec again: the zoo stores again what it lacks",
    "BC905": "serve the plan with the version of blockc that compiled it",
}


def engine_command(zoo: Path, executor: str, *, null_step_s: float = 0.0) -> EngineCommand:
    """Return the command of the engine proper, for a socket and a plan."""

    def command(socket: Path, plan: PlanFile) -> Sequence[str]:
        options: tuple[object, ...] = (
            "--plan", plan.path, "--epoch", plan.epoch, "--zoo", zoo, "--socket", socket, "--executor", executor,
        )  # fmt: skip
        if executor == "null":
            options = (*options, "--null-step-s", null_step_s)
        # -P: nothing that lies in the directory we happen to run in is imported.
        return (sys.executable, "-P", "-m", "blockc_runtime.engine", *map(str, options))

    return command


def engine_environment(engine: int = 0, *, cpus: int | None = None, gpus: bool = False) -> dict[str, str]:
    """Return what an engine is started with; what is set by whoever starts us goes before our own.

    ``cpus``: threads that it may have; None: as many as there are cores. ``gpus``: of several it sees its own only.
    """
    # OpenMP threads that spin between steps take the cores from the server.
    # A short spin keeps them from sleeping between two ops of one step (65 ms against 48 ms a step).
    # glibc asks for huge pages: 26 GB/s of weights are read where small pages give 24.
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "10000",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        **({} if cpus is None else {"OMP_NUM_THREADS": str(cpus)}),
        **os.environ,
        **({"CUDA_VISIBLE_DEVICES": _visible(engine, os.environ.get("CUDA_VISIBLE_DEVICES"))} if gpus else {}),
    }


def _visible(engine: int, visible: str | None) -> str:
    """A device's number among those that we may see ourselves; none if there are fewer."""
    if visible is None:
        return str(engine)
    names = [name for name in visible.split(",") if name]
    return names[engine] if engine < len(names) else ""


class Supervisor:
    """Starts the engine of a device, restarts it when it dies, and ends it. ``engine``: the number of that.

    An engine starts with the plan in force. Plans before it, of which requests are unfinished, it is given afterwards.
    """

    def __init__(
        self,
        client: EngineClient,
        command: EngineCommand,
        *,
        plan: PlanFile,
        metrics: Metrics,
        progress: Callable[[str], None],
        engine: int = ALONE,
        environment: Callable[[], Mapping[str, str]] = engine_environment,
    ) -> None:
        self._client = client
        self._engine = engine
        self._environment = environment
        self._command = command
        self._plan = plan
        self._plans = {plan.epoch: plan}  # in force, or with unfinished requests
        self._loads = asyncio.Lock()
        self._metrics = metrics
        self._progress = progress
        self._directory = Path(tempfile.mkdtemp(prefix="blockc-"))  # mode 0700: ours alone
        self._socket = self._directory / "engine.sock"
        self._server: asyncio.Server | None = None
        self._life: EngineLife | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def engine_pid(self) -> int | None:
        """The process in force, if there is one."""
        return None if self._life is None else self._life.pid

    async def load(self, plan: PlanFile, *, alone: bool = False) -> Loaded | LoadFailed:
        """Have the engine in force make one more plan ready. Raises `EngineGoneError` if it ends meanwhile."""
        async with self._loads:
            life = self._life
            if life is None or self._stopping:
                raise EngineGoneError
            return await life.load(plan, alone=alone)

    def put_in_force(self, plan: PlanFile) -> None:
        """Start engines with this plan from here on, which the one in force has."""
        self._plan = self._plans[plan.epoch] = plan

    def has(self, epoch: int) -> bool:
        """Whether there is an engine, and it has this plan."""
        return self._life is not None and self._life.has(epoch)

    async def renew(self) -> None:
        """End the engine: the next one starts with the plan in force."""
        if self._life is not None:
            await self._life.end()

    def retire(self, epoch: int) -> None:
        """Nothing is unfinished of a plan that is not in force, and nothing will be: let it go."""
        if self._life is not None and self._life.has(epoch):
            self._life.send(Retire(epoch=epoch))
        self._plans.pop(epoch, None)

    async def start(self) -> None:
        """Start the first engine and wait until it is ready. Raises `DiagnosticError`."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_unix_server(self._on_connection, str(self._socket))
        except OSError as problem:  # paths of sockets have 107 bytes at most
            await self.stop()
            help_ = "name another folder, with a short path, in the variable TMPDIR"
            refuse("BC003", f"no socket can be made in {self._directory}: {problem.strerror or problem}", help_)
        life = await self._begin()
        if not await life.ready():
            error = life.error or EngineError(
                code="BC999", message=f"the engine ended while it started ({life.exit_text()})"
            )
            await self.stop()
            raise DiagnosticError(_diagnostics(error))
        self._task = asyncio.create_task(self._keep_alive(life))

    async def stop(self) -> None:
        """End the engine and wait for its end."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._life is not None:
            await self._life.end()
        self._client.detach(self._engine)
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _begin(self) -> EngineLife:
        process = await asyncio.create_subprocess_exec(
            *self._command(self._socket, self._plan),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env=dict(self._environment()),
            start_new_session=True,  # a terminal's signals reach the server only
        )
        self._life = EngineLife(process, self._client, self._engine, self._plan, self._progress)
        return self._life

    def _on_connection(self) -> asyncio.Protocol:
        return EngineConnection(self._life)

    async def _keep_alive(self, life: EngineLife) -> None:
        """Restart until stopped. Starts that fail one after another end it for good."""
        loop = asyncio.get_running_loop()
        failed_starts = quick_deaths = 0
        began_s = loop.time()
        while True:
            if await life.ready():
                failed_starts = 0
                restoring = asyncio.create_task(self._restore(life))
                await life.ended()
                restoring.cancel()
                quick_deaths = 0 if loop.time() - began_s > _STABLE_S else quick_deaths + 1
            else:
                failed_starts += 1
            self._client.detach(self._engine)  # first: others can go on with its requests
            await life.end()
            if failed_starts >= _FAILED_STARTS:
                self._progress(f"the engine failed to start {failed_starts} times; giving up")
                self._client.give_up(self._engine)
                return
            self._progress(f"the engine ended ({life.exit_text()}); starting another one")
            failures = max(failed_starts, quick_deaths - 1)
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            self._metrics.engine_restarts.inc()
            began_s = loop.time()
            life = await self._begin()

    async def _restore(self, life: EngineLife) -> None:
        """Give an engine the plans that are in use and that it was not started with."""
        for epoch in self._client.lacking(self._engine):
            plan = self._plans.get(epoch)
            if plan is None:
                continue  # its last request has ended while another was loaded
            self._progress(f"the engine loads the plan before, for requests that began with it ({epoch})")
            try:
                answer = await self.load(plan)
            except EngineGoneError:
                return  # the next one is given them
            if isinstance(answer, Loaded):
                self._client.open(self._engine, epoch)
            elif epoch == self._plan.epoch:
                await life.end()  # the next one starts with it
                return
            else:
                self._client.abandon(self._engine, epoch, _PLAN_LOST)


def _diagnostics(error: EngineError) -> Diagnostics:
    problems = Diagnostics()
    code = error.code if error.code in CODES else "BC999"
    problems.report(code, error.message, help=_HELP.get(code))
    return problems
