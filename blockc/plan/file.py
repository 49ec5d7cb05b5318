"""Plans as files: canonical JSON with a digest of itself, so that a plan edited by hand is noticed.

The file is ``{"digest": ..., "plan": {...}}``. The version is checked before the schema: a plan of another version
gets a clear word (BC902) instead of a list of unknown fields (BC901).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from blockc.diag import refuse
from blockc.ir.canonical import canonical_json, json_digest
from blockc.ir.strict_json import StrictJsonError, parse_strict_json
from blockc.plan.model import FORMAT_VERSION, ExecutionPlan
from blockc.plan.verify import plan_problem

_MAX_BYTES = 256 << 20
_RECOMPILE = "compile the spec again; a plan is written by the compiler only"
_MAKES_ONE = "`blockc compile SPEC -o plan.json` writes a plan"


def dump_plan(plan: ExecutionPlan) -> bytes:
    """Return the file's bytes: the same plan gives the same bytes."""
    content = plan.model_dump(mode="json")
    return (canonical_json({"digest": json_digest("plan v1", content), "plan": content}) + "\n").encode()


def write_plan(plan: ExecutionPlan, path: Path) -> None:
    """Write a plan so that a reader sees the old file or the new one. Raises `DiagnosticError` (BC003)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(dump_plan(plan))
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        refuse("BC003", f"cannot write {path}: {error.strerror}", "name another file with `-o`")


def load_plan(path: Path) -> ExecutionPlan:
    """Read, check and return a plan. Raises `DiagnosticError` (BC003, BC901, BC902)."""
    return read_plan(plan_bytes(path), str(path))


def plan_bytes(path: Path) -> bytes:
    """What is in a plan's file, for `read_plan`. Raises `DiagnosticError` (BC003, BC901) for what can be none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            refuse("BC901", f"{path} is larger than any plan", _RECOMPILE)
        data = path.read_bytes()
    except OSError as error:
        refuse("BC003", f"cannot read {path}: {error.strerror}", _MAKES_ONE)
    if path.suffix == ".blk":
        refuse("BC901", f"{path} is a spec, not a plan", f"`blockc compile {path} -o plan.json` makes one of it")
    return data


def read_plan(data: bytes, path: str) -> ExecutionPlan:
    """The plan whose file holds ``data``, called ``path`` in errors. Raises `DiagnosticError` (BC901, BC902)."""
    content = _content(path, data)
    try:
        plan = ExecutionPlan.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        refuse("BC901", f"{path} is not a plan: {where}: {first['msg']}", _RECOMPILE)
    problem = plan_problem(plan)
    if problem is not None:
        refuse("BC901", f"{path} contradicts itself: {problem}", _RECOMPILE)
    return plan


def require_weights(plan: ExecutionPlan) -> None:
    """Refuse to run a plan whose tensors are only assumed. Raises `DiagnosticError` (BC905)."""
    if plan.target == "sim":
        refuse(
            "BC905",
            "the plan was made with `--target sim`: no weights were read, so there is nothing to run",
            "compile the spec again without `--target sim`, once every fine-tune has its files",
        )


def verify_plan(plan: ExecutionPlan) -> None:
    """Check a plan that was just made. Raises AssertionError: a bad one is our bug."""
    problem = plan_problem(plan)
    assert problem is None, problem


def _content(path: str, data: bytes) -> dict[str, Any]:
    try:
        document = parse_strict_json(data)
    except StrictJsonError as error:
        refuse("BC901", f"{path} is not a plan: {error}", _RECOMPILE)
    content = document.get("plan") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(content, dict):
        refuse("BC901", f"{path} is not a plan", _RECOMPILE)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        refuse(
            "BC902",
            f"{path} has the format version {str(version)[:20]}, this blockc reads {FORMAT_VERSION}",
            "compile the spec again with this version",
        )
    if document.get("digest") != json_digest("plan v1", content):
        refuse("BC901", f"{path} was changed after it was compiled", _RECOMPILE)
    return content
