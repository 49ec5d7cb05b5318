"""What recorded decode steps take: by hand, and as part of what a placement counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from blockc.ir.layout import DRAW_BYTES, KERNEL_BYTES, kernel_count, pass_bytes
from blockc.ir.recorded import Bucket, Paged, RowBuffer, buckets_of, recorded_bytes, row_buffers, table_numbers
from blockc.place.count import place_problem
from blockc.unify import unify
from tests.support.deployments import deployment
from tests.support.synthetic import ATTENTION, EMBED, HEAD, HIDDEN, MLP, VOCAB, base_path, chain

BLOCKS = (EMBED, ATTENTION, MLP, HEAD)


PAGED = Paged(positions=100, page_tokens=16, window=None)


def test_tables_and_buffers_by_hand() -> None:
    assert [buckets_of(max_rows=rows, max_tokens=1)[-1].singles for rows in (3, 200, 5000)] == [4, 224, 256]
    assert buckets_of(max_rows=3, max_tokens=300) == (Bucket(singles=4), Bucket(singles=16, chunked=384))
    windowed = replace(PAGED, window=17)
    assert (PAGED.pages(), windowed.pages(), windowed.pages(30)) == (7, 3, 4)
    # Tokens and positions; slots and rows of two groups; three segments' tiles and their number; pages, and a scratch
    # page each.
    assert table_numbers(Bucket(singles=4), [PAGED, windowed], 3) == (
        4 * (2 + 2 * 5 + 3 * 4) + 3 * 2 + (4 * 7 + 1) + (4 * 3 + 1)
    )
    # With prompts of 64 tokens 32 rows and a tile more, places of logits, and tiles of those.
    assert table_numbers(Bucket(singles=4, chunked=64), [PAGED], 1) == (
        2 * 68 + (68 + 4 * 36) + 2 * (4 * (36 + 1) + 2) + 36 + (36 * 7 + 1)
    )
    assert row_buffers(BLOCKS) == {
        RowBuffer(goes_in=True, selects=False, width=HIDDEN, dtype="BF16"),
        RowBuffer(goes_in=False, selects=False, width=HIDDEN, dtype="BF16"),
        RowBuffer(goes_in=False, selects=True, width=VOCAB, dtype="BF16"),
    }
    hungriest = max(pass_bytes(block, tokens=16, rows=16) for block in BLOCKS)
    wanted = 8 * table_numbers(Bucket(singles=16), [PAGED], 1) + 16 * 2 * (2 * HIDDEN + VOCAB) + hungriest
    wanted += 16 * VOCAB * DRAW_BYTES
    assert recorded_bytes(BLOCKS, max_rows=16, max_tokens=1, groups=[PAGED], segments=1) == wanted
    prompts = Bucket(singles=16, chunked=64)
    hungriest = max(pass_bytes(block, tokens=80, rows=48) for block in BLOCKS)
    wanted = 8 * table_numbers(prompts, [PAGED], 1) + 2 * (80 * 2 * HIDDEN + 48 * VOCAB) + hungriest
    wanted += 16 * VOCAB * DRAW_BYTES
    assert recorded_bytes(BLOCKS, max_rows=16, max_tokens=64, groups=[PAGED], segments=1) == wanted
    assert recorded_bytes((), max_rows=16, max_tokens=64, groups=[], segments=0) == 0


@pytest.mark.parametrize("max_rows", [16, 400])
def test_a_placement_on_cuda_counts_it_and_a_page_of_each_group(max_rows: int) -> None:
    models = {"base": chain(base_path(0, 2))}
    given = deployment(Path("base"), memory_bytes=1 << 42)
    given = replace(given, policy=replace(given.policy, max_rows=max_rows))
    graph = unify(models, together=[frozenset(models)])
    problems = {}
    for kind in ("cpu", "h100_80g"):
        devices = tuple(replace(own, kind=kind) for own in given.cluster.devices)
        problems[kind] = place_problem(replace(given, cluster=replace(given.cluster, devices=devices)), graph)
    cpu, cuda = problems["cpu"], problems["h100_80g"]
    length = models["base"].path.max_model_len
    groups = [
        Paged(positions=length, page_tokens=group.page_tokens, window=shaped.shape.window)
        for group, shaped in zip(cpu.groups, graph.groups, strict=True)
    ]
    recorded = recorded_bytes(
        BLOCKS, max_rows=max_rows, max_tokens=given.policy.max_batched_tokens, groups=groups,
        segments=len(graph.segments),
    )  # fmt: skip
    scratch = sum(group.page_bytes for group in cpu.groups)
    kernels = KERNEL_BYTES * kernel_count(block.structure for block in graph.blocks.values())  # kept by a CPU alone
    assert cuda.groups == cpu.groups
    for own, other in zip(cuda.segments, cpu.segments, strict=True):
        assert own.activation_bytes - recorded - scratch == other.activation_bytes - kernels
