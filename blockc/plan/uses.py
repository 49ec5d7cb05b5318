"""What a plan takes from the zoo, and what for: each tensor and blob, at every place where it is bound.

In: a plan, and a function that reads a blob (manifests of sides name tensors of their own). Out: uses, in the order of
the plan's tables. Invariant: a zoo that holds what these name is all that a runtime needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from blockc.diag import DiagnosticError, Diagnostics
from blockc.ir.tensor import TensorRef
from blockc.plan.manifests import SideManifest
from blockc.plan.model import ExecutionPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One place where a plan binds a tensor, or a blob (``tensor`` is None).

    ``what`` is in words. ``chains``: those that need it, sorted.
    """

    digest: str
    what: str
    chains: tuple[int, ...]
    tensor: TensorRef | None = None


def plan_uses(plan: ExecutionPlan, read_blob: Callable[[str], bytes], diags: Diagnostics) -> tuple[Use, ...]:
    """All uses. A manifest that cannot be read is reported, and the uses that it would tell of are left out."""
    return (*_block_uses(plan), *_chain_uses(plan, read_blob, diags), *_model_uses(plan))


def chains_through(plan: ExecutionPlan) -> dict[str, tuple[int, ...]]:
    """The chains that pass each block, preludes included, by the block's digest."""
    passing: dict[str, set[int]] = {digest: set() for digest in plan.blocks}
    for index, chain in enumerate(plan.chains):
        for digest in plan.paths[chain.path].blocks:
            passing[digest].add(index)
            prelude = plan.blocks[digest].prelude
            if prelude is not None:
                passing[prelude].add(index)
    return {digest: tuple(sorted(chains)) for digest, chains in passing.items()}


def reads_whole_texts(plan: ExecutionPlan, chain: int) -> bool:
    """Whether a chain's tokens depend on those that follow them: a text has to stand in one step."""
    structures = {plan.blocks[block].structure for block in plan.paths[plan.chains[chain].path].blocks}
    return any("= blockc.encode(" in plan.structures[digest] for digest in structures)


def read_manifest(digest: str, data: bytes) -> SideManifest:
    """The manifest that is the blob ``digest``. Raises `DiagnosticError` (BC903)."""
    try:
        return SideManifest.model_validate_json(data)
    except ValidationError as error:
        diags = Diagnostics()
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        diags.report(
            "BC903", f"the blob {digest} is no manifest of sides: {where}: {first['msg']}", help="compile again"
        )
        raise DiagnosticError(diags) from error


def _block_uses(plan: ExecutionPlan) -> Iterator[Use]:
    passing = chains_through(plan)
    for digest, block in plan.blocks.items():
        for param, tensor in block.tensors.items():
            what = f"parameter {param} of block {digest[:12]}"
            for part in tensor.parts:
                yield Use(digest=part.digest, what=what, chains=passing[digest], tensor=part)


def _model_uses(plan: ExecutionPlan) -> Iterator[Use]:
    for name, model in plan.models.items():
        chains = () if model.chain is None else (model.chain,)
        for evidence in (model.sharing, model.quantization):
            if evidence is not None and evidence.tensors is not None:
                yield Use(digest=evidence.tensors, what=f"evidence of {name}", chains=chains)


def _chain_uses(plan: ExecutionPlan, read_blob: Callable[[str], bytes], diags: Diagnostics) -> Iterator[Use]:
    manifests: dict[str, SideManifest | None] = {}
    for index, chain in enumerate(plan.chains):
        for name, digest in chain.assets.items():
            yield Use(digest=digest, what=name, chains=(index,))
        if chain.sides is None:
            continue
        yield Use(digest=chain.sides, what="manifest of sides", chains=(index,))
        if chain.sides not in manifests:
            try:
                manifests[chain.sides] = read_manifest(chain.sides, read_blob(chain.sides))
            except DiagnosticError as error:
                diags.items += error.diagnostics.items
                manifests[chain.sides] = None
        manifest = manifests[chain.sides]
        for side in () if manifest is None else manifest.sides:
            for term in side.terms:
                for role, tensor in sorted(term.tensors.items()):
                    what = f"{role} of {term.codec} at {side.site} of occurrence {side.occurrence}"
                    yield Use(digest=tensor.digest, what=what, chains=(index,), tensor=tensor)
