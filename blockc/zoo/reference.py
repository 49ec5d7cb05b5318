"""References: the plans that the zoo keeps tensors for.

    zoo/plans/<digest of the file>.json     {"host": ..., "place": ..., "plan": <blob>}

A reference says which plan was written, and where: its file's place as seen from the zoo, so that a folder with both
may be moved, and the machine, because the same place is another file there. The zoo keeps a copy of the plan's file
as a blob. Invariant: at every instant the plan that lies at a place where the compiler wrote is referred to. A
reference ends when another plan is written to its place, or when somebody says so; never because a file is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from blockc.ir.canonical import canonical_json
from blockc.ir.strict_json import StrictJsonError, parse_strict_json
from blockc.plan import ExecutionPlan, dump_plan, write_plan
from blockc.zoo.atomic import sync_directory, write_atomically
from blockc.zoo.errors import fail, io_errors
from blockc.zoo.lease import host_name
from blockc.zoo.pack import DIGEST
from blockc.zoo.store import Zoo

State = Literal["there", "gone", "replaced", "elsewhere"]
_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Reference:
    """``plan``: the blob that is the plan's file, and so that file's SHA-256."""

    place: str
    host: str
    plan: str

    @property
    def file_name(self) -> str:
        """The name of its file, a digest of what it holds."""
        return hashlib.sha256(self.data).hexdigest() + _SUFFIX

    @property
    def data(self) -> bytes:
        """What its file holds."""
        return (canonical_json(asdict(self)) + "\n").encode()


def publish(plan: ExecutionPlan, path: Path, zoo: Zoo | None) -> None:
    """Write a plan to ``path`` and keep what it needs in the zoo, in place of the plan that was there.

    A crash in between leaves both plans' references, and one of the plans at ``path``. Of several compilations to
    one path the last to write wins, with its reference. A plan that was made without weights has no zoo.
    """
    if zoo is None:
        write_plan(plan, path)
        return
    reference = refer(zoo, dump_plan(plan), path)
    with zoo.writing():
        write_plan(plan, path)
        with io_errors(path):
            sync_directory(path.resolve().parent)  # or a loss of power could bring back the plan that was there
        _write(zoo, reference)  # again: another compilation to the same place may have ended it
        place = (reference.place, reference.host)
        end(zoo, [other for other in references(zoo) if (other.place, other.host) == place and other != reference])


def refer(zoo: Zoo, data: bytes, path: Path, *, host: str | None = None) -> Reference:
    """Keep what the plan needs whose file at ``path`` holds, or is about to hold, ``data``.

    ``host``: the machine that ``path`` is on; None: this one.
    """
    place = os.path.relpath(path.resolve(), zoo.root.resolve())
    reference = Reference(place=Path(place).as_posix(), host=host or host_name(), plan=zoo.put_blob(data))
    with zoo.writing():
        _write(zoo, reference)
    return reference


def references(zoo: Zoo) -> tuple[Reference, ...]:
    """All of them, sorted. Raises `DiagnosticError`: BC903 for a damaged one, BC003."""
    found: list[Reference] = []
    with io_errors(zoo.plans):
        names = sorted(os.listdir(zoo.plans)) if zoo.plans.is_dir() else []
    for name in names:
        if name.endswith(_SUFFIX):
            path = zoo.plans / name
            try:
                with io_errors(path, but=FileNotFoundError):
                    found.append(_parsed(path, path.read_bytes()))
            except FileNotFoundError:
                continue  # ended since it was listed
    return tuple(sorted(found))


def end(zoo: Zoo, ended: Iterable[Reference]) -> None:
    """Remove references. The zoo's lock is held."""
    for reference in ended:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(zoo.plans / reference.file_name)
    sync_directory(zoo.plans)


def path_of(zoo: Zoo, reference: Reference) -> Path:
    """Where the plan was written, as this machine sees it."""
    return Path(os.path.normpath(zoo.root.resolve() / reference.place))


def state_of(zoo: Zoo, reference: Reference) -> State:
    """What lies at the plan's place. ``elsewhere``: another machine's disk, which nothing here can say."""
    if reference.host != host_name():
        return "elsewhere"
    try:
        data = path_of(zoo, reference).read_bytes()
    except OSError:
        return "gone"
    return "there" if hashlib.sha256(data).hexdigest() == reference.plan else "replaced"


def _write(zoo: Zoo, reference: Reference) -> None:
    path = zoo.plans / reference.file_name
    if not path.exists() or path.read_bytes() != reference.data:
        write_atomically(path, (reference.data,))


def _parsed(path: Path, data: bytes) -> Reference:
    try:
        if hashlib.sha256(data).hexdigest() + _SUFFIX != path.name:
            raise ValueError("its bytes were changed")
        fields = parse_strict_json(data)
        if not isinstance(fields, dict) or fields.keys() != {"host", "place", "plan"}:
            raise ValueError("it is not a reference to a plan")
        if not all(isinstance(value, str) for value in fields.values()) or not DIGEST.fullmatch(fields["plan"]):
            raise ValueError("it is not a reference to a plan")
    except (StrictJsonError, ValueError) as error:
        fail(
            "BC903",
            f"{path}: {error}",
            notes=("which plan it kept tensors for is not known, so nothing is collected",),
            help="delete that file and compile the plan again",
        )
    return Reference(**fields)
