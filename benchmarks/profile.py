"""Where the time of a step goes: products by base weights, sides, attention, norms, sampling, scheduling, the rest.

    python -m benchmarks.profile --shape mid --rows 16 --loras 16

Runs the engine's scheduler and executor in this process, without HTTP, with a clock around each kind of op, and prints
milliseconds a step for the step that reads all prompts and for decode steps. Kernels run where they are called here,
and do not wait for each other. With ``--torch`` torch's own functions take the place of blockc's kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Read when torch is imported: as the server sets them for its engine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from benchmarks.fleet import SHAPES, compiled_fleet
from benchmarks.rates import origin
from benchmarks.serving import OUTPUT_TOKENS, prompt
from blockc.plan import ExecutionPlan, load_plan
from blockc.zoo import Zoo
from blockc_runtime.executor import launch, model
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import engine_limits
from blockc_runtime.memory import before_loading, before_serving
from blockc_runtime.native import library
from blockc_runtime.ops.linear import by_kernel, weights
from blockc_runtime.request import Request, Sampling
from blockc_runtime.scheduler import Scheduler

Spent = dict[str, float]


class Clock:
    """Seconds by what they were spent on. Of calls within calls, each counts what the inner ones leave."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time counts as ``name``."""

        def timed(*args: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            start_s = time.perf_counter()
            result = function(*args, **named)
            took_s = time.perf_counter() - start_s
            self.spent[name] += took_s - self._inner.pop()
            if self._inner:
                self._inner[-1] += took_s
            return result

        timed.__name__ = function.__name__
        return timed


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Clocks around ops, products and sampling, in what is loaded from here on."""
    table = model.op_table

    def op_table(device: Any) -> Any:
        ops = table(device)
        named = {"linears": "sides", "rms_norm": "norms", "gated": "gates", "cached": "sides"}
        there = {f.name: op for f in fields(ops) if callable(op := getattr(ops, f.name))}
        own = {name: clock.around(named.get(name, name), op) for name, op in there.items()}
        return replace(ops, **own, wait=frozenset())

    with ExitStack() as stack:
        stack.enter_context(patch.object(model, "op_table", op_table))
        for kind in (by_kernel.KernelWeights, weights.PackedWeights, weights.DenseWeights, weights.JoinedWeights):
            stack.enter_context(patch.object(kind, "__call__", clock.around("products", kind.__call__)))
        stack.enter_context(patch.object(launch, "draw", clock.around("sampling", launch.draw)))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="mid")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--loras", type=int, help="on how many LoRAs; 0: the base; by default one each")
    parser.add_argument("--work", type=Path, help="keep the models here between runs")
    parser.add_argument("--torch", action="store_true", help="torch's functions in place of blockc's kernels")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loras = options.rows if options.loras is None else options.loras
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if options.torch:
            stack.enter_context(patch.object(library, "_best", lambda: "--torch"))
        path = compiled_fleet((options.work or Path(scratch)) / options.shape, SHAPES[options.shape], max(loras, 1))
        report = profile(load_plan(path), Zoo(path.parent / "zoo"), options.shape, options.rows, loras)
    if options.json:
        options.json.write_text(json.dumps({**origin("benchmarks.profile"), **report}, indent=2) + "\n")


def profile(plan: ExecutionPlan, zoo: Zoo, shape: str, rows: int, loras: int) -> dict[str, Any]:
    before_loading()
    clock = Clock()
    with watched(clock):
        executor = TorchExecutor(plan, zoo)
        before_serving()
        limits = engine_limits(plan)
        run(executor, Scheduler(limits, KvIndex(limits)), plan, shape, rows, loras, 0, clock)
        prompts, decodes = run(executor, Scheduler(limits, KvIndex(limits)), plan, shape, rows, loras, 1, clock)
    print(library.describe())
    return {
        "shape": shape, "rows": rows, "loras": loras,
        "prompts_ms": printed(f"{rows} prompts", prompts), "decode_ms": printed(f"decode of {rows} rows", decodes),
    }  # fmt: skip


def run(
    executor: TorchExecutor,
    scheduler: Scheduler,
    plan: ExecutionPlan,
    shape: str,
    rows: int,
    loras: int,
    turn: int,
    clock: Clock,
) -> tuple[Spent, Spent]:
    """Seconds a step: of steps that read prompts, all together, and of decode steps on average."""
    apps = {app.address: index for index, app in enumerate(plan.apps)}
    for row in range(rows):
        app = apps[f"t/a{row % loras}" if loras else "t/base"]
        request = Request(
            id=f"{turn}-{row}", app=app, chain=plan.apps[app].chain, isolation_group=str(row),
            prompt=tuple(prompt(SHAPES[shape], row, turn)), emitted=0, max_tokens=OUTPUT_TOKENS, stop_token_ids=(),
            sampling=Sampling(),
        )  # fmt: skip
        scheduler.admit(request)
    totals: tuple[defaultdict[str, float], defaultdict[str, float]] = (defaultdict(float), defaultdict(float))
    steps = 0
    while scheduler.has_work:
        clock.spent.clear()
        start_s = time.perf_counter()
        step = scheduler.schedule(start_s)
        assert step is not None
        issued_s = time.perf_counter()
        executor.submit(step)
        result = executor.collect()
        ran_s = time.perf_counter()
        scheduler.complete(step, result, ran_s)
        end_s = time.perf_counter()
        decodes = all(len(row.tokens) == 1 for row in step.rows)
        steps += decodes
        own = totals[decodes]
        for name, seconds in clock.spent.items():
            own[name] += seconds
        own["scheduling"] += issued_s - start_s + end_s - ran_s
        own["rest"] += ran_s - issued_s - sum(clock.spent.values())
    return dict(totals[0]), {name: seconds / steps for name, seconds in totals[1].items()}


def printed(title: str, spent: Spent) -> dict[str, float]:
    total = sum(spent.values())
    print(f"{title}: {total * 1e3:.2f} ms")
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {name:<14}{seconds * 1e3:9.2f} ms  {100 * seconds / total:5.1f} %")
    return {name: round(seconds * 1e3, 3) for name, seconds in spent.items()}


if __name__ == "__main__":
    main()
