"""The compiler: from a spec to a plan, in named stages, top to bottom.

In: a resolved ``Deployment`` and a zoo. Out: an ``ExecutionPlan``; tensors and manifests are in the zoo, or for the
target ``sim`` nowhere. All problems of a stage are reported together, and a stage with errors is the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from blockc.cost.profile import Profile
from blockc.diag import Diagnostics
from blockc.graph import Block, Chain
from blockc.ir import DTYPE_BYTES
from blockc.ir.layout import format_bytes
from blockc.lower import isolation_group, lower
from blockc.merge import Amounts, Merged, merge, merges_any
from blockc.place import base_blocks, decides_by_load, place, place_problem, report_residency, unserved_rps
from blockc.plan import ExecutionPlan, verify_plan
from blockc.quantize import Quantized, quantize
from blockc.share import Shared, share
from blockc.spec.deployment import Deployment
from blockc.target import Target, check_target
from blockc.tune import ModelFiles, OnModelBytes, assume, parameter_count, read_models, trace_models, tune
from blockc.unify import UnifiedGraph, unify
from blockc.zoo import Zoo

OnStage = Callable[[str, float], None]
# What a stage yields, by its name; a stage that found errors yields what it has.
OnResult = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A plan with what was learnt on the way. ``stages``: seconds by name of stage.

    ``zoo``: where its tensors are, kept there while this lives; then by a reference (`blockc.zoo.publish`), or not.
    None for the target ``sim``.
    """

    zoo: Zoo | None
    plan: ExecutionPlan
    models: Mapping[str, Chain]
    stages: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the stages before placement yield: the blocks of all models, whatever a step's limits and pages are."""

    zoo: Zoo | None
    target: Target
    files: Mapping[str, ModelFiles]
    parameters: Mapping[str, int]
    chains: Mapping[str, Chain]
    shared: Shared
    merged: Merged
    quantized: Quantized
    graph: UnifiedGraph


def compile_deployment(
    deployment: Deployment,
    *,
    zoo: Zoo | None,
    diags: Diagnostics,
    target: Target | None = None,
    profile: Profile | None = None,
    before: ExecutionPlan | None = None,
    on_stage: OnStage = lambda name, seconds: None,
    on_result: OnResult = lambda name, result: None,
    on_bytes: OnModelBytes = lambda name, done, total: None,
) -> Compiled:
    """Run all stages. Raises :class:`blockc.diag.DiagnosticError` at the end of a stage that found errors.

    ``target`` None: what the devices are. ``sim`` reads configurations only and takes no ``zoo``; the others need one.
    ``profile``: measured rates that loads are placed by; ``before``: the plan that this one follows.
    """
    clock = Clock(diags, on_stage, on_result)
    prepared = prepare(
        deployment, zoo=zoo, target=target, clock=clock, on_bytes=on_bytes, profile=profile, before=before
    )
    return arrange(prepared, deployment, clock=clock, profile=profile, before=before)


def prepare(
    deployment: Deployment,
    *,
    zoo: Zoo | None,
    target: Target | None,
    clock: Clock,
    on_bytes: OnModelBytes = lambda name, done, total: None,
    profile: Profile | None = None,
    before: ExecutionPlan | None = None,
) -> Prepared:
    """The stages before placement. Of the policy they see `share`, and `merge` with what placement says to it."""
    diags = clock.diags
    with clock.stage("read") as stage:
        target = check_target(deployment, target, diags=diags)
        stage.result = files = read_models(deployment, diags=diags, configuration_only=target == "sim")
    with clock.stage("trace") as stage:
        stage.result = traced = trace_models(files, diags=diags)
    with clock.stage("tune") as stage:
        if target == "sim":
            chains = assume(files, traced, diags=diags)
        else:
            assert zoo is not None, "tensors that are to be served go to a zoo"
            chains = tune(files, traced, zoo=zoo, diags=diags, on_bytes=on_bytes)
        stage.result = chains
    with clock.stage("share") as stage:
        shared = Shared(chains=chains, evidence={})
        if zoo is not None:
            shared = share(deployment.policy, files, chains, zoo=zoo, diags=diags)
        stage.result = shared
    with clock.stage("merge") as stage:
        merged = Merged(chains=shared.chains, merges={})
        if merges_any(deployment):

            def weigh(found: Mapping[str, Chain]) -> Amounts:
                return _amounts(deployment, found, profile=profile, before=before)

            merged = merge(deployment, shared.chains, zoo=zoo, weigh=weigh, diags=diags)
        stage.result = merged
    with clock.stage("quantize") as stage:
        stage.result = quantized = quantize(deployment, files, merged.chains, zoo=zoo, diags=diags)
    with clock.stage("unify") as stage:
        stage.result = graph = _unify(deployment, quantized.chains)
        if target != "sim":  # nobody knows what files that were not read have in common
            report_sharing(files, shared.chains, diags=diags)
            report_effects(files, chains, diags=diags)
    parameters = {name: parameter_count(model) for name, model in traced.items()}
    return Prepared(
        zoo=zoo, target=target, files=files, parameters=parameters, chains=chains, shared=shared, merged=merged,
        quantized=quantized, graph=graph,
    )  # fmt: skip


def arrange(
    prepared: Prepared,
    deployment: Deployment,
    *,
    clock: Clock,
    profile: Profile | None = None,
    before: ExecutionPlan | None = None,
) -> Compiled:
    """Placement and what follows, of the deployment that was prepared, or one with other limits of steps and pages."""
    diags, graph = clock.diags, prepared.graph
    with clock.stage("place") as stage:
        bases = base_blocks(deployment, prepared.quantized.chains)
        report_residency(deployment, graph, bases, diags=diags)
        problem = place_problem(
            deployment, graph, originals=prepared.chains, profile=profile, before=before, bases=bases
        )
        placement = place(problem, diags=diags)
        stage.result = (problem, placement)
    with clock.stage("lower") as stage:
        assert placement is not None, "place reports an error whenever it has no placement"
        stage.result = plan = lower(
            deployment, prepared.files, graph, placement,
            target=prepared.target, rates_of=problem.rates_of, parameters=prepared.parameters, zoo=prepared.zoo,
            merged=prepared.merged, evidence=prepared.shared.evidence, quantizations=prepared.quantized.quantizations,
        )  # fmt: skip
        verify_plan(plan)
    return Compiled(zoo=prepared.zoo, plan=plan, models=prepared.chains, stages=clock.seconds)


def _unify(deployment: Deployment, chains: Mapping[str, Chain]) -> UnifiedGraph:
    wanted = {app.model for app in deployment.apps}
    return unify({name: chain for name, chain in chains.items() if name in wanted}, together=together(deployment))


def _amounts(
    deployment: Deployment, chains: Mapping[str, Chain], *, profile: Profile | None, before: ExecutionPlan | None
) -> Amounts:
    """What the placement of these chains has."""
    bases = base_blocks(deployment, chains)
    problem = place_problem(deployment, _unify(deployment, chains), profile=profile, before=before, bases=bases)
    found, by_load = place(problem, diags=Diagnostics()), decides_by_load(problem)
    if found is None:
        return Amounts(goals=problem.objective, values=(), by_load=by_load)
    goals, values = found.solver.objective, found.solver.values or (found.solver.value,)
    if problem.sheds:
        goals, values = ("unserved", *goals), (float(unserved_rps(problem, found.served)), *values)
    return Amounts(goals=goals, values=values, by_load=by_load)


def report_sharing(files: Mapping[str, ModelFiles], chains: Mapping[str, Chain], *, diags: Diagnostics) -> None:
    """Warn of full fine-tunes that share nothing with the model they derive from (BC301)."""
    for name, model in files.items():
        if model.kind != "full" or name not in chains or model.lineage[1] not in chains:
            continue
        parent = {block.digest for block in chains[model.lineage[1]].path.blocks}
        own = chains[name].path.blocks
        if not any(block.digest in parent for block in own):
            diags.report(
                "BC301",
                f"`{name}` shares 0 of {len(own)} blocks with `{model.lineage[1]}`",
                at=model.span,
                help="adapters, or training only the top layers, would share; after full training no tensor is equal\n"
                f"`share = delta(max_error = 15%)` would keep it in about {format_bytes(_as_integers(own))}",
            )


def _as_integers(blocks: Sequence[Block]) -> int:
    """Bytes of matrices in integers of 4 bits with a scale for each 64 of them."""
    matrices = {ref for block in blocks for ref in block.tensors.values() if len(ref.shape) > 1}
    return sum(ref.nbytes * 17 // (32 * DTYPE_BYTES[ref.dtype]) for ref in matrices)


def report_effects(files: Mapping[str, ModelFiles], chains: Mapping[str, Chain], *, diags: Diagnostics) -> None:
    """Warn of adapters whose every term is zero (BC302)."""
    for name, model in files.items():
        if not model.is_full and name in chains and chains[name].digest == chains[model.lineage[1]].digest:
            diags.report(
                "BC302",
                f"`{name}` changes nothing: it is served as `{model.lineage[1]}`",
                at=model.span,
                notes=("each of its terms has a scale of 0 or a matrix of zeros, as a LoRA has before its training",),
                help="name the adapter that was trained, or leave this one out",
            )


def together(deployment: Deployment) -> list[frozenset[str]]:
    """Models whose apps share an isolation group, group by group."""
    members: dict[str, set[str]] = {}
    for tenant in deployment.tenants.values():
        for app in tenant.apps:
            members.setdefault(isolation_group(app, tenant), set()).add(app.model)
    return [frozenset(members[group]) for group in sorted(members)]


@dataclass(slots=True)
class _Stage:
    """``result``: what the stage yielded."""

    result: Any = None


class Clock:
    """Times stages, hands on their results, and ends the compilation after one that reported errors."""

    def __init__(
        self,
        diags: Diagnostics,
        on_stage: OnStage = lambda name, seconds: None,
        on_result: OnResult = lambda name, result: None,
    ) -> None:
        self.diags = diags
        self.on_stage = on_stage
        self.on_result = on_result
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[_Stage]:
        """Around a stage, which puts its result in what it is given."""
        start_s = time.perf_counter()
        stage = _Stage()
        yield stage
        self.seconds[name] = time.perf_counter() - start_s
        self.on_stage(name, self.seconds[name])
        self.on_result(name, stage.result)
        self.diags.raise_if_errors()
