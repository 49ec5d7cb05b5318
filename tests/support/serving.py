"""A compiled deployment, and requests through the runtime's scheduler and executor in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blockc.compiler import compile_deployment
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan
from blockc.spec.deployment import Deployment
from blockc.zoo import Zoo


@dataclass(frozen=True)
class Compiled:
    plan: ExecutionPlan
    zoo: Zoo
    diags: Diagnostics


def compiled(plan: Deployment, root: Path) -> Compiled:
    zoo, diags = Zoo(root, create=True), Diagnostics()
    return Compiled(plan=compile_deployment(plan, zoo=zoo, diags=diags).plan, zoo=zoo, diags=diags)


def zoo_bytes(zoo: Zoo) -> int:
    return sum(path.stat().st_size for path in zoo.root.rglob("*") if path.is_file())
