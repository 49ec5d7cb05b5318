"""What each stage yields, as text: goldens, and that nothing depends on order or says too much."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from blockc.ir import parse_structure, structure_digest
from blockc.merge import Merged
from blockc.plan import ExecutionPlan, SideManifest
from blockc.quantize import Quantized
from blockc.render import STAGES, render_stage
from blockc.render.chains import plan_chains
from blockc.render.graph import graph_blocks, plan_blocks, render_blocks
from blockc.render.segments import graph_segments, plan_segments
from blockc.render.structures import render_structures
from blockc.share import Shared
from tests.plan.fleet import fleet_plan
from tests.render import pieces

Golden = Callable[[str, str], None]


@pytest.fixture(scope="module")
def plan() -> ExecutionPlan:
    return fleet_plan()


RESULTS = {
    "read": pieces.models,
    "trace": pieces.traced,
    "tune": pieces.chains,
    "share": lambda: Shared(chains=pieces.chains(), evidence={}),
    "merge": lambda: Merged(chains=pieces.chains(), merges={}),
    "quantize": lambda: Quantized(chains=pieces.chains(), quantizations={}),
    "unify": pieces.graph,
    "place": lambda: pieces.placed(1 << 20),
    "lower": fleet_plan,
}


@pytest.mark.parametrize("name", STAGES)
def test_dumps(name: str, golden: Golden) -> None:
    text = render_stage(name, RESULTS[name]())
    golden(f"stages/{name}.txt", text)
    assert text == render_stage(name, RESULTS[name]())
    assert text.endswith("\n")
    assert all(char == "\n" or char.isprintable() for char in text)


def test_a_problem_without_a_placement(golden: Golden) -> None:
    golden("stages/no-placement.txt", render_stage("place", pieces.placed(1 << 11)))


LEVELS: dict[str, Callable[[ExecutionPlan], str]] = {
    "structures": render_structures,
    "graph": lambda plan: render_blocks(plan_blocks(plan)),
    "chains": lambda plan: plan_chains(plan, {}),
    "segments": plan_segments,
}


@pytest.mark.parametrize("level", LEVELS)
def test_levels_of_a_plan(level: str, plan: ExecutionPlan, golden: Golden) -> None:
    golden(f"levels/{level}.txt", LEVELS[level](plan))


def test_a_structure_can_be_checked_by_its_digest(plan: ExecutionPlan) -> None:
    """What is indented under its header is the canonical text, and nothing else."""
    sections = render_structures(plan).split("\nstructure ")[1:]
    assert len(sections) == len(plan.structures)
    for section in sections:
        text = "".join(f"{line[4:]}\n" for line in section.splitlines() if line.startswith("    "))
        digest = section[:12]
        assert hashlib.sha256(text.encode()).hexdigest().startswith(digest)
        assert structure_digest(parse_structure(text)).startswith(digest)


def test_every_tensor_names_all_blocks_that_bind_it(plan: ExecutionPlan) -> None:
    lines = render_blocks(plan_blocks(plan)).splitlines()
    tied = [line for line in lines if line.startswith("  param embed")]
    assert len(tied) == 2
    assert all("also embed of" in line for line in tied)
    assert sum("also" in line for line in lines) == 2


def test_the_order_of_tables_within_a_block_does_not_matter(plan: ExecutionPlan) -> None:
    """The compiler binds in the order of the structure, a plan's file in that of the alphabet."""
    blocks = {
        digest: block.model_copy(update={"tensors": dict(reversed(block.tensors.items()))})
        for digest, block in plan.blocks.items()
    }
    turned = plan.model_copy(update={"blocks": blocks})
    assert render_blocks(plan_blocks(turned)) == render_blocks(plan_blocks(plan))


def test_sides_are_shown_where_their_manifest_is_known(plan: ExecutionPlan) -> None:
    assert plan_chains(plan, {}).count("sides     not shown") == 2
    empty = {str(chain.sides): SideManifest(sides=()) for chain in plan.chains if chain.sides}
    assert "not shown" not in plan_chains(plan, empty)


def test_a_graph_names_who_passes() -> None:
    graph = pieces.graph()
    text = graph_segments(graph)
    for name in ("tiny", "terse", "legal"):
        assert name in text.splitlines()[graph.chain_of[name] + 1]
    whole = [block for block in graph_blocks(graph) if block.chains == (0, 1, 2)]
    assert len(whole) == 4, "embedding, first layer, head and prelude"
