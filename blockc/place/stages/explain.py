"""Why no pipeline was found: for want of memory, of a link, or of time (BC402, BC501); what has no effect beside one.

In: a problem of which some chain fits no pipeline. Out: a diagnostic, unless bytes alone are to blame and nobody asked
for stages: then `blockc.place.explain` says what a whole model needs. Of pipelines: a warning (BC804) for each line of
the spec that they leave without effect.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from blockc.diag import Diagnostics
from blockc.place.cells import Views
from blockc.place.problem import PlaceProblem
from blockc.place.stages.pipelines import pipelines_of, staged_chains


def report_no_pipeline(views: Views, *, diags: Diagnostics) -> None:
    """Report what is in the way."""
    problem = views.problem
    chains = staged_chains(views)
    chain = problem.chains[chains[0]]
    names = _names(problem, chains)
    silent = tuple(replace(own, load=None) for own in problem.chains)
    still = views.with_problem(replace(problem, chains=silent))
    if pipelines_of(still) is not None:
        load = next((own.load for index in chains if (own := problem.chains[index]).load is not None), None)
        diags.report(
            "BC501",
            f"{names} cannot keep pace in stages: they fit, but what is expected of them does not",
            at=chain.span if load is None else load.slo_span or load.span or chain.span,
            notes=(
                "each token passes every stage in turn, and waits for a sweep of each and for the way between them",
            ),
            help="a later `tpot` or `ttft` target, a lower rate, more devices, or faster links between them",
        )
        return
    nodes = {device.node for device in problem.devices}
    if problem.node_bytes_per_s is None and len(nodes) > 1:
        linked = still.with_problem(replace(still.problem, node_bytes_per_s=1e12))
        if pipelines_of(linked) is not None:
            diags.report(
                "BC402",
                f"{names} would fit in stages on several nodes, and nothing is known to travel between nodes",
                at=problem.cluster_span,
                help="say what one node sends to another: `network { inter_node = 100Gbps }` in the cluster",
            )
            return
    if problem.stages:
        diags.report(
            "BC402",
            f"{names} cannot be divided into {problem.stages} stages on {len(problem.devices)} devices",
            at=problem.stages_span or problem.cluster_span,
            notes=("a stage has at least one block, and its devices are alike and in one node",),
            help="`pipeline = auto` divides only what fits no node, into as few stages as can be",
        )


def report_nothing_left(views: Views, divided: Set[int], *, diags: Diagnostics) -> None:
    """Report that pipelines take all devices and that others need some, too (BC402)."""
    problem = views.problem
    others = [chain for number, chain in enumerate(problem.chains) if number not in divided]
    names = _names(problem, sorted(divided))
    diags.report(
        "BC402",
        f"no device is left for `{others[0].label}`: {names} take all {len(problem.devices)} in stages",
        at=problem.cluster_span,
        help="more devices, devices with more memory, or lower rates",
    )


def report_without_effect(problem: PlaceProblem, divided: Set[int], *, diags: Diagnostics) -> None:
    """Warn of `residency` of what runs in stages (BC804)."""
    chains = sorted(divided)
    names = _names(problem, chains)
    turns = [problem.segments[segment].turn for chain in chains for segment in problem.chains[chain].segments]
    for name, span, acts in (
        ("fine_tunes", problem.sides_limit_span, any(problem.chains[chain].bank is not None for chain in chains)),
        ("blocks", problem.blocks_limit_span, any(turn is not None for turn in turns)),
    ):
        if acts:
            diags.report(
                "BC804",
                f"`{name}` of `residency` acts on nothing in stages, and {names} run in stages",
                at=span,
                help="all that they have stays in memory; `pipeline = off` divides no model",
            )


def _names(problem: PlaceProblem, chains: Sequence[int]) -> str:
    """In an order that does not depend on their digests."""
    return ", ".join(sorted(f"`{problem.chains[chain].label}`" for chain in chains)[:4])
