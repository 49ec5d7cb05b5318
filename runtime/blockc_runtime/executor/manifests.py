"""What the plan's manifests say of each chain's sides, checked against the structures that they act on.

In: a plan and a zoo. Out: sides by chain, and why chains are disabled. Invariant: what is handed on fits its sites; one
fine-tune that does not disables its own chain only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from blockc.diag import DiagnosticError
from blockc.ir import Side, Structure, side_problems, sites_of
from blockc.ir.banks import Signature, signature
from blockc.plan import ChainEntry, ExecutionPlan, SideManifest
from blockc_runtime.executor.sides import ChainSides
from blockc_runtime.executor.stacks import check_values
from blockc_runtime.executor.weights import WeightStore
from blockc_runtime.ops.dtypes import torch_dtype


def read_manifests(
    plan: ExecutionPlan, store: WeightStore, *, limited: Collection[int], structure_of: Callable[[str], Structure]
) -> tuple[dict[int, ChainSides], dict[int, str]]:
    """The sides of each chain that has some, and why chains are disabled.

    ``limited``: chains that take turns in slots; their values are checked whenever they are read. ``structure_of``: a
    block.
    """
    manifests: dict[int, ChainSides] = {}
    disabled: dict[int, str] = {}
    banks: dict[int | None, Signature] = {}
    for index, chain in enumerate(plan.chains):
        if chain.sides is None and not chain.virtual_tokens:
            continue
        try:
            sides = {} if chain.sides is None else read_manifest(store.zoo.blob(chain.sides))
            structures = [structure_of(block) for block in plan.paths[chain.path].blocks]
            _check_sides(structures, sides)
            _check_virtual(chain, structures, sides, store)
            if index in limited:
                _check_bank(chain, signature(sides), banks)
            else:
                dtype = torch_dtype(plan.paths[chain.path].dtype)
                for side in sides.values():
                    check_values(side, store, dtype)
        except (DiagnosticError, ValueError) as error:
            disabled[index] = str(error)
        else:
            if sides:
                manifests[index] = sides
    return manifests, disabled


def read_manifest(data: bytes) -> ChainSides:
    """Parse a manifest blob. Raises ValueError where it is malformed."""
    manifest = SideManifest.model_validate_json(data)
    sides: dict[tuple[int, str], Side] = {}
    for entry in manifest.sides:
        if (entry.occurrence, entry.site) in sides or not entry.terms:
            raise ValueError(f"site {entry.site} of occurrence {entry.occurrence} has no single side")
        sides[entry.occurrence, entry.site] = entry.side
    return sides


def _check_bank(chain: ChainEntry, own: Signature, banks: dict[int | None, Signature]) -> None:
    """All fine-tunes of a bank are alike."""
    if banks.setdefault(chain.bank, own) != own:
        raise ValueError(f"it does not fit the slots of bank {chain.bank}")


def _check_sides(structures: Sequence[Structure], sides: ChainSides) -> None:
    for (occurrence, site), side in sides.items():
        if not 0 <= occurrence < len(structures):
            raise ValueError(f"occurrence {occurrence} lies outside the chain")
        place = sites_of(structures[occurrence]).get(site)
        if place is None:
            raise ValueError(f"occurrence {occurrence} has no site {site}")
        for problem in side_problems(place, side):
            raise ValueError(f"occurrence {occurrence}: {problem}")


def _check_virtual(chain: ChainEntry, structures: Sequence[Structure], sides: ChainSides, store: WeightStore) -> None:
    """Every virtual token is in the table, or in rows of its own."""
    for occurrence, structure in enumerate(structures):
        for place in sites_of(structure).values():
            if place.kind != "embed":
                continue
            known: set[int] = set()
            if (side := sides.get((occurrence, place.name))) is not None:
                known = {int(i) for term in side.of("rows") for i in store.read(term["index"]).tolist()}
            if any(not 0 <= token < place.shape[0] and token not in known for token in chain.virtual_tokens):
                raise ValueError(f"{place.name} has no rows for its virtual tokens")
