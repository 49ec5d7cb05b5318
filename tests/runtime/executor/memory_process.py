"""Loads a plan in a process of its own, runs its largest steps and prints what that took, as JSON.

python memory_process.py PLAN.json ZOO TOKENS ROWS CONTEXT
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path


def main(plan_file: str, zoo: str, tokens: int, rows: int, context: int) -> None:
    from blockc_runtime.memory import before_loading, before_serving

    before_loading()
    from blockc.ir import parse_structure
    from blockc.ir.layout import kernel_count
    from blockc.plan import ExecutionPlan

    plan = ExecutionPlan.model_validate_json(Path(plan_file).read_bytes())
    count = kernel_count(parse_structure(text) for text in plan.structures.values())
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(count)

    import torch

    from benchmarks.engine_process import process_memory
    from blockc.zoo import Zoo
    from blockc_runtime.executor.torch_ import TorchExecutor

    torch.set_num_threads(1)
    before = process_memory(os.getpid(), Path(zoo)).held_bytes
    executor = TorchExecutor(plan, Zoo(Path(zoo)))
    before_serving()
    loaded = process_memory(os.getpid(), Path(zoo)).held_bytes
    model = executor._model
    assert model is not None
    with torch.inference_mode():
        for pool in model.pools:
            pool.erase(torch.arange(pool.pages * pool.page_tokens))
    for step in steps(plan, tokens, rows, context):
        executor.submit(step)
        assert all(row.fault is None for row in executor.collect().rows)
    served, use = process_memory(os.getpid(), Path(zoo)), executor.memory()
    assert use is not None
    print(
        json.dumps(
            {
                "loaded_bytes": loaded - before,
                "rise_bytes": served.most_held_bytes - before,
                "parts": asdict(use),
            }
        )
    )


def steps(plan, tokens, rows, context):  # type: ignore[no-untyped-def]
    """Chunks behind a cached page, as large as a step may be; then one token of each row, of ever fewer rows."""
    from blockc_runtime.request import Sampling
    from blockc_runtime.step import Launch, Row, Step

    page_tokens = plan.kv_groups[0].page_tokens
    pages = context // page_tokens
    sampling = Sampling(temperature=1.0, top_p=0.9)

    def step(counts, start):  # type: ignore[no-untyped-def]
        made = tuple(
            Row(
                request=str(i),
                chain=i % len(plan.chains),
                tokens=tuple(range(3, 3 + count)),
                start=start,
                pages=(tuple(range(i * pages, (i + 1) * pages)),),
                samples=1,
                sampling=sampling,
                output_index=0,
            )
            for i, count in enumerate(counts)
        )
        launches = tuple(
            Launch(instance=0, segment=s, micro_batch=0, rows=tuple(range(len(made))))
            for s in range(len(plan.segments))
        )
        return Step(id=0, epoch=0, rows=made, launches=launches)

    for less in range(6):
        yield step([tokens // rows - less] * rows, page_tokens)
    for _ in range(2):
        for count in range(rows, 0, -1):
            yield step([1] * count, context - 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
