"""Plans whose tensors, manifests and assets lie in a zoo, without a compiler."""

from __future__ import annotations

import functools
import random
from pathlib import Path

from blockc.diag import Diagnostics
from blockc.ir import TensorRef, canonical_json, tensor_digest
from blockc.plan import (
    ExecutionPlan,
    SideEntry,
    SideManifest,
    TermEntry,
    plan_uses,
    read_plan,
)
from blockc.zoo import Zoo, references
from tests.plan.fleet import digest, fleet_plan

# The layer that only the fleet's checkpoint has: what makes one variant differ from another.
_OWN = frozenset(digest(f"tuned.{param}") for param in ("norm", "q", "k"))


def stored_plan(zoo: Zoo, *, variant: int = 0) -> ExecutionPlan:
    """A plan with a base, a checkpoint and two adapters. Variants share the base and the first adapter."""
    plan = _fleet()
    text = plan.model_dump_json()
    refs = {ref.digest: ref for block in plan.blocks.values() for ref in block.tensors.values()}
    items = []
    for old, ref in sorted(refs.items()):
        real, data = _tensor(f"{old} {variant if old in _OWN else 0}", ref.dtype, ref.shape)
        text = text.replace(old, real.digest)
        items.append((real, data))
    for index, chain in enumerate(plan.chains):
        if chain.sides is not None:
            name = f"adapter {index} {0 if index == 2 else variant}"
            a, b = (_tensor(f"{name} {side}", "BF16", shape) for side, shape in (("A", (8, 64)), ("B", (64, 8))))
            items += [a, b]
            side = SideEntry(
                occurrence=1,
                site="q",
                terms=(TermEntry(codec="low_rank", tensors={"a": a[0], "b": b[0]}, scalars={"scale": (2.0).hex()}),),
            )
            manifest = canonical_json(SideManifest(sides=(side,)).model_dump(mode="json")).encode()
            text = text.replace(chain.sides, zoo.put_blob(manifest))
    text = text.replace(digest("tokenizer"), zoo.put_blob(b"a tokenizer"))
    # Two packs, each with tensors of all kinds, so that collections have something to rewrite.
    items.sort(key=lambda item: item[0].digest)
    zoo.put_tensors(items[::2])
    zoo.put_tensors(items[1::2])
    return ExecutionPlan.model_validate_json(text)


def missing(zoo_root: Path, plan: Path) -> list[str]:
    """What the plan at a path needs and cannot have, read anew from the zoo."""
    zoo, diags = Zoo(zoo_root), Diagnostics()
    uses = plan_uses(read_plan(plan.read_bytes(), str(plan)), zoo.blob, diags)
    said = [item.message for item in diags]
    for use in uses:
        try:
            zoo.blob(use.digest) if use.tensor is None else zoo.tensor(use.digest)
        except Exception as error:
            said.append(f"{use.what}: {error}")
    return said


def files(root: Path) -> dict[str, bytes]:
    """All that counts in a zoo."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for directory in ("packs", "blobs", "plans")
        for path in sorted((root / directory).iterdir())
        if not path.name.endswith(".tmp")
    }


def referred(zoo: Zoo) -> list[tuple[str, str]]:
    return [(item.place, item.plan) for item in references(zoo)]


@functools.cache
def _fleet() -> ExecutionPlan:
    return fleet_plan()


@functools.cache
def _tensor(seed: str, dtype: str, shape: tuple[int, ...]) -> tuple[TensorRef, bytes]:
    nbytes = TensorRef(digest="", dtype=dtype, shape=shape).nbytes
    data = random.Random(seed).randbytes(nbytes)
    return TensorRef(digest=tensor_digest(dtype, shape, data), dtype=dtype, shape=shape), data
