"""What makes a block the block that it is, part by part, so that two blocks can be told apart with evidence.

In: a block's structure digest, scalars, tensors and context. Out: parts by name, and which of them differ. Invariant:
two blocks have equal digests exactly if none of their parts differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blockc.ir.tensor import TensorRef


def block_parts(
    *,
    structure: str,
    binds: Mapping[str, float | int | None],
    tensors: Mapping[str, TensorRef],
    prelude: str | None,
    contexts: Sequence[int],
) -> dict[str, str]:
    """Each part's value as text: ``structure``, ``prelude``, ``contexts``, ``bind:NAME``, ``tensor:NAME``."""
    parts = {"structure": structure, "prelude": str(prelude), "contexts": ",".join(map(str, contexts))}
    for name, value in binds.items():
        parts[f"bind:{name}"] = value.hex() if isinstance(value, float) else str(value)
    for name, tensor in tensors.items():
        parts[f"tensor:{name}"] = tensor.digest
    return parts


def differing_parts(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the parts that differ, sorted. Scalars and tensors are compared under one structure only."""
    differing = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    if "structure" in differing:
        differing &= {"structure", "prelude", "contexts"}
    return tuple(sorted(differing))
