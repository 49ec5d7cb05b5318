"""Does a plan hold together? Digests, indices, and that every chain can be run as written.

In: a plan of the right schema. Out: the first contradiction, in words, or None. Invariant: whatever the values, nothing
is raised, and code that runs a plan without a contradiction meets no index or key that is not there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from blockc.ir.infer import value_types
from blockc.ir.parse import StructureError, parse_structure
from blockc.ir.structure import Structure, ValueType, format_structure, structure_digest
from blockc.ir.tensor import CACHE_DTYPE_BYTES, DTYPE_BYTES, QuantizedRef, TensorRef, quantized_ref
from blockc.plan.graph_entries import BlockEntry
from blockc.plan.model import ExecutionPlan
from blockc.plan.verify_chains import chain_problems
from blockc.plan.verify_placement import placement_problems

_DIGEST = re.compile(r"[0-9a-f]{64}")


def plan_problem(plan: ExecutionPlan) -> str | None:
    """The first contradiction found, None if there is none. Later checks rely on earlier ones."""
    structures: dict[str, Structure] = {}
    checks = (
        _structures(plan, structures),
        _blocks(plan, structures),
        _paths(plan, structures),
        chain_problems(plan, structures),
        placement_problems(plan),
    )
    return next(itertools.chain.from_iterable(checks), None)


def _structures(plan: ExecutionPlan, found: dict[str, Structure]) -> Iterator[str]:
    """Fills ``found``."""
    for digest, text in plan.structures.items():
        try:
            structure = parse_structure(text)
        except StructureError as error:
            yield f"structure {digest[:12]}: {error}"
            return
        if format_structure(structure) != text:
            yield f"structure {digest[:12]} is not in canonical form"
        if structure_digest(structure) != digest:
            yield f"structure {digest[:12]} has another digest than its text"
        found[digest] = structure


def _blocks(plan: ExecutionPlan, structures: dict[str, Structure]) -> Iterator[str]:
    for digest, block in plan.blocks.items():
        name = f"block {digest[:12]}"
        structure = structures.get(block.structure)
        if structure is None:
            yield f"{name} has no structure"
            continue
        shapes = {param: (type_.dtype, type_.shape) for param, type_ in structure.params}
        if {param: (tensor.dtype, tensor.shape) for param, tensor in block.tensors.items()} != shapes:
            yield f"{name} binds other tensors than its structure declares"
        if not all(_DIGEST.fullmatch(tensor.digest) for tensor in block.tensors.values()):
            yield f"{name} binds a tensor without a digest"
        if not all(map(_holds_together, block.tensors.values())):
            yield f"{name} binds integers that are not those of its matrix"
        if set(block.binds) != set(structure.binds):
            yield f"{name} binds other scalars than its structure declares"
        yield from _context(plan, structures, name, block)


def _holds_together(tensor: TensorRef) -> bool:
    """Whether the parts of a quantised matrix are what it says."""
    if not isinstance(tensor, QuantizedRef):
        return True
    bits, group, leading, columns = tensor.bits, tensor.group, tensor.shape[:-1], tensor.shape[-1]
    if bits not in (4, 8) or group < 1 or columns % group or columns * bits % 8:
        return False
    scales = tuple((part.dtype, part.shape) for part in tensor.parts[1:])
    made = quantized_ref(tensor.shape, tensor.codes, tensor.scale, tensor.shift, bits=bits, group=group)
    return (
        (tensor.codes.dtype, tensor.codes.shape) == ("U8", (*leading, columns * bits // 8))
        and set(scales) == {(tensor.dtype, (*leading, columns // group))}
        and made == tensor
        and all(_DIGEST.fullmatch(part.digest) for part in tensor.parts)
    )


def _context(plan: ExecutionPlan, structures: dict[str, Structure], name: str, block: BlockEntry) -> Iterator[str]:
    """The prelude computes what the block reads, in the types that it reads."""
    declared = structures[block.structure].contexts
    if len(block.contexts) != len(declared):
        yield f"{name} takes another number of context inputs than its structure declares"
    prelude = plan.blocks.get(block.prelude) if block.prelude is not None else None
    if block.prelude is not None and (prelude is None or prelude.structure not in structures):
        yield f"{name} has a prelude that is not there"
        return
    if prelude is not None and (prelude.prelude is not None or structures[prelude.structure].contexts):
        yield f"{name} has a prelude with a prelude"
    outputs = [] if prelude is None else _outputs(structures[prelude.structure])
    for (context, type_), index in zip(declared, block.contexts, strict=False):
        if not 0 <= index < len(outputs):
            yield f"{name} reads context that its prelude does not compute"
            return
        if outputs[index] not in (None, type_):
            yield f"{name} reads {context} as {type_}, its prelude computes {outputs[index]}"


def _paths(plan: ExecutionPlan, structures: dict[str, Structure]) -> Iterator[str]:
    for digest, path in plan.paths.items():
        name = f"path {digest[:12]}"
        if not path.blocks or any(block not in plan.blocks for block in path.blocks):
            yield f"{name} names a block that is not there"
            continue
        if path.dtype not in DTYPE_BYTES or any(layer.dtype not in CACHE_DTYPE_BYTES for layer in path.kv_layers):
            yield f"{name} has an unknown dtype"
        if path.prefixes and len(path.prefixes) != len(path.blocks):
            yield f"{name} has {len(path.blocks)} blocks and names for {len(path.prefixes)}"
        run = [structures[plan.blocks[block].structure] for block in path.blocks]
        attentions = sum(structure.attention_count for structure in run)
        if attentions != len(path.kv_layers):
            yield f"{name} has {attentions} attention ops and {len(path.kv_layers)} KV layers"
        for place, (before, after) in enumerate(itertools.pairwise(run)):
            handed, taken = _outputs(before), [type_ for _, type_ in after.inputs]
            if len(handed) != 1 or len(taken) != 1:
                yield f"{name} hands on more than hidden states after block {place}"
            elif handed[0] not in (None, taken[0]):
                yield f"{name} hands {handed[0]} from block {place} to one that takes {taken[0]}"


def _outputs(structure: Structure) -> list[ValueType | None]:
    types = value_types(structure)
    return [types[name] for name in structure.returns]
