"""A compiled deployment, and requests through the runtime's scheduler and executor in this process."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from blockc.compiler import compile_deployment
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan
from blockc.spec.deployment import Deployment
from blockc.verify.served import Answer, Question, serve_greedily
from blockc.zoo import Zoo
from blockc_runtime.step import Step


@dataclass(frozen=True)
class Compiled:
    plan: ExecutionPlan
    zoo: Zoo
    diags: Diagnostics


def compiled(plan: Deployment, root: Path) -> Compiled:
    zoo, diags = Zoo(root, create=True), Diagnostics()
    return Compiled(plan=compile_deployment(plan, zoo=zoo, diags=diags).plan, zoo=zoo, diags=diags)


def answers(found: Compiled, steps: list[Step] | None = None, *, rounds: int = 2) -> list[Answer]:
    """Every app is asked in random order, ``rounds`` times."""
    rng = random.Random(5)
    questions = [
        Question(app=app, tokens=tuple(rng.randrange(90) for _ in range(rng.randint(3, 12))), output_tokens=5)
        for _ in range(rounds)
        for app in rng.sample(range(len(found.plan.apps)), len(found.plan.apps))
    ]
    on_step = (lambda step: None) if steps is None else steps.append
    return serve_greedily(found.plan, found.zoo, questions, together=True, on_step=on_step)


def zoo_bytes(zoo: Zoo) -> int:
    return sum(path.stat().st_size for path in zoo.root.rglob("*") if path.is_file())
