"""Fine-tunes that are added to a running server, and taken away again.

In: the name of an app and a folder. Out: another plan, swapped in. Invariant: a folder lies, with all of its files,
below the one that was allowed when the server was started; a compiler in a process of its own makes the plan, of the
spec and all that was added, and it may change nothing but the one app.

What was added is gone when the server starts again, or when a plan is applied: then that is what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockc_runtime.server.errors import ApiError, echo, invalid, unavailable
from blockc_runtime.server.swap import AppChanges, Swaps

_NAME = re.compile(r"(?:(?P<tenant>[\w.-]{1,64})/)?(?P<app>[\w.-]{1,64})")
_PARENT = re.compile(r"[\w.-]{1,64}")
# Fields that the compiler finds wrong, by its codes: a tenant that is not there never gets there.
_FIELDS = {"BC101": "base_model_name"}
_MOST_FILES = 1000
_END_S = 2.0
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterOptions:
    """``folder``: below it all added fine-tunes lie. ``spec``: what the served plan was compiled from."""

    folder: Path
    spec: Path
    variables: tuple[str, ...] = ()


class Adapters:
    """Those that were added, by the address of their app. One change at a time."""

    def __init__(self, options: AdapterOptions, swaps: Swaps, zoo: Path, progress: Callable[[str], None]) -> None:
        self._options = options
        self._swaps = swaps
        self._zoo = zoo
        self._progress = progress
        self._added: dict[str, str] = {}  # app -> what `blockc compile --add` is told
        self._plan: str | None = None  # the digest of the plan that has them
        self._lock = asyncio.Lock()
        self._compiler: Process | None = None
        self._ending = False

    async def load(self, name: str, path: str, parent: str | None) -> dict[str, Any]:
        """Add an app. Raises `ApiError`, with the compiler's diagnostics where it refuses the fine-tune."""
        async with self._alone():
            address = self._address(name)
            if self._is_served(address):
                raise invalid(f"there is an app `{address}` already", param="lora_name")
            if parent is not None and not _PARENT.fullmatch(parent):
                raise invalid("this is no name of a base or fine-tune", param="base_model_name")
            folder = await asyncio.to_thread(self._folder, path)
            onto = address if parent is None else f"{address}:{parent}"
            added = {**self._known(), address: f"{onto}={folder}"}
            return await self._change(added, AppChanges(came=(address,), gone=(), changed=()))

    async def unload(self, name: str) -> dict[str, Any]:
        """Take away an app that was added. Raises `ApiError`."""
        async with self._alone():
            address = self._address(name)
            known = self._known()
            if address not in known:
                if self._is_served(address):
                    raise invalid(
                        f"`{address}` is in the plan that the server was given: apply another plan", param="lora_name"
                    )
                raise ApiError(404, f"there is no app `{echo(address)}`", param="lora_name", code="model_not_found")
            del known[address]
            return await self._change(known, AppChanges(came=(), gone=(address,), changed=()))

    async def ended(self) -> None:
        """Wait until nothing is under way."""
        async with self._lock:
            pass

    def close(self) -> None:
        """The server is ending: end a compiler that is running."""
        self._ending = True
        self._kill()

    def _kill(self) -> None:
        if self._compiler is not None and self._compiler.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._compiler.pid, signal.SIGKILL)  # and whatever it has started

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        if self._lock.locked():
            raise ApiError(409, "another fine-tune is being loaded or unloaded; try again later", code="swap_under_way")
        async with self._lock:
            yield

    def _known(self) -> dict[str, str]:
        """What was added to the plan in force; nothing, if another one was applied since."""
        return dict(self._added) if self._plan == self._swaps.in_force.digest else {}

    async def _change(self, added: dict[str, str], wanted: AppChanges) -> dict[str, Any]:
        data = await self._compiled(list(added.values()))

        def allow(changes: AppChanges) -> None:
            if changes != wanted:
                others = {*changes.came, *changes.gone, *changes.changed} - {*wanted.came, *wanted.gone}
                raise ApiError(
                    409,
                    "the spec and the plan in force differ by more than this fine-tune "
                    f"({', '.join(sorted(others)[:5]) or 'nothing would change'}): compile and apply the spec first",
                    code="plan_differs",
                )

        report = await self._swaps.apply(data, allow=allow)
        self._added, self._plan = added, report.plan
        return report.document()

    async def _compiled(self, additions: list[str]) -> bytes:
        """Have a compiler make the plan. Its files are read where they are allowed to lie, and nowhere else."""
        options = self._options
        with tempfile.TemporaryDirectory(prefix="blockc-add-") as folder:
            output = Path(folder) / "plan.json"
            command: list[object] = [
                sys.executable, "-P", "-m", "blockc", "compile", options.spec.absolute(), "-o", output,
                "--zoo", self._zoo.absolute(), "--progress", "none", "--json",
            ]  # fmt: skip
            command += [part for text in options.variables for part in ("--var", text)]
            command += [part for text in additions for part in ("--add", text)]
            self._compiler = await asyncio.create_subprocess_exec(
                *map(str, command), cwd=options.folder, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL,
                env={**os.environ, "HF_HUB_OFFLINE": "1"}, start_new_session=True,
            )  # fmt: skip
            if self._ending:  # since it was asked for
                self._kill()
            try:
                out, _ = await self._compiler.communicate()
                code = self._compiler.returncode
            finally:
                self._kill()
                self._compiler = None
            if code == 0:
                return await asyncio.to_thread(output.read_bytes)
        if self._ending:
            raise unavailable("the server is ending")
        raise _refused(out, code)

    def _is_served(self, address: str) -> bool:
        return any(app.address == address for app in self._swaps.in_force.plan.apps)

    def _address(self, name: str) -> str:
        found = _NAME.fullmatch(name)
        if found is None:
            raise invalid("write `tenant/app`", param="lora_name")
        tenants = {app.tenant for app in self._swaps.in_force.plan.apps}
        if found["tenant"] is not None:
            if found["tenant"] not in tenants:
                raise invalid(f"there is no tenant `{found['tenant']}`", param="lora_name", code="BC101")
            return name
        if len(tenants) != 1:
            raise invalid("there are several tenants: write `tenant/app`", param="lora_name")
        return f"{tenants.pop()}/{name}"

    def _folder(self, path: str) -> str:
        """The folder as seen from the allowed one. What leads out of that is not there, for all that anybody learns."""
        root = self._options.folder.resolve()
        refusal = invalid("there is no such folder below the one that fine-tunes may lie in", param="lora_path")
        if "\0" in path or len(path) > 4096:
            raise refusal
        try:
            folder = (root / path).resolve(strict=True)
            files = [*folder.rglob("*")] if folder.is_relative_to(root) and folder != root and folder.is_dir() else []
            inside = bool(files) and all(file.resolve(strict=True).is_relative_to(root) for file in files)
        except (OSError, RuntimeError):
            raise refusal from None
        if not inside or len(files) > _MOST_FILES:
            raise refusal
        return str(folder.relative_to(root))


def _refused(out: bytes, code: int | None) -> ApiError:
    """What the compiler said."""
    try:
        found = json.loads(out)["diagnostics"]
        errors = [item for item in found if item["severity"] == "error"]
        first = errors[0]
        return ApiError(
            400, f"{first['code']}: {first['message']}", param=_FIELDS.get(first["code"], "lora_path"),
            code=first["code"],
            diagnostics=[*errors, *(item for item in found if item["severity"] != "error")][:_SHOWN],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, IndexError):
        return ApiError(500, f"the compiler ended with exit code {code}")
