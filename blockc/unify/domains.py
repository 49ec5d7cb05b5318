"""``KvDomain``: a digest of all that influences one layer's keys and values.

Equal domains mean equal K and V for equal tokens, whatever comes later in the chain. What counts is decided by
dataflow: everything before the block that holds the attention op, and inside it only what the key and value operands
are computed from. A LoRA on the query projection or on the MLP of the same layer therefore leaves the domain alone
and changes those above; so do a layer's window, scale and softcap. Of the prelude only those values count that are
read. Ops are not interpreted: an op that this module has never heard of counts with all its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blockc.graph import Block, Chain
from blockc.ir import Bound, Op, Param, Structure, Value, json_digest, sites_of, text_digest
from blockc.ir.structure import Arg, format_arg

_ATTENTION = "blockc.attention"
# What follows these depends on later tokens: no prefix of it can be reused, and no such model has a cache.
_WHOLE_TEXT = frozenset({"blockc.encode", "blockc.pool"})


def kv_domains(chain: Chain) -> tuple[str, ...]:
    """One digest per attention op of the chain, in order."""
    return DomainFinder().domains(chain)


@dataclass(frozen=True, slots=True, kw_only=True)
class _BlockCones:
    """What of a block counts, its fine-tune aside.

    ``whole``: for all that comes after. ``keys_values``: for each attention op, the digest of all that its K and V
    need, and the sites in that block which they do not pass through. ``sees_all``: a token's result may depend on
    later tokens.
    """

    whole: str
    sees_all: bool
    keys_values: tuple[tuple[str, frozenset[str]], ...]


class DomainFinder:
    """Finds the domains of many chains; what they share is worked out once."""

    def __init__(self) -> None:
        self._cones: dict[tuple[str, str | None], _BlockCones] = {}

    def domains(self, chain: Chain) -> tuple[str, ...]:
        """One digest per attention op of the chain, in order."""
        path = chain.path
        sides: dict[int, list[tuple[str, str]]] = {}
        for side, digest in zip(chain.sides, chain.side_digests, strict=True):
            sides.setdefault(side.site.occurrence, []).append((side.site.name, digest))
        before = text_digest("kv start v1", [path.dtype])
        found: list[str] = []
        sees_all = False
        for occurrence, block in enumerate(path.blocks):
            own = sorted(sides.get(occurrence, ()))
            cones = self._of(block, path.prelude)
            sees_all |= cones.sees_all
            caches = [layer.dtype for layer in path.kv_layers[len(found) :][: len(cones.keys_values)]]
            # Of several attention ops in one block the later ones read what the earlier ones cached.
            above = [before, *caches]
            for content, elsewhere in cones.keys_values:
                counting = [digest for site, digest in own if site not in elsewhere]
                found.append(text_digest("kv domain v1", [*above, content, *counting]))
            before = text_digest("kv prefix v1", [*above, cones.whole, *[digest for _, digest in own]])
        assert len(found) == len(path.kv_layers), "every attention op has a cache of its own"
        assert not (found and sees_all), "a model with a cache sees no later tokens"
        return tuple(found)

    def _of(self, block: Block, prelude: Block | None) -> _BlockCones:
        key = (block.digest, None if prelude is None else prelude.digest)
        if key not in self._cones:
            self._cones[key] = _block_cones(block, prelude)
        return self._cones[key]


def _block_cones(block: Block, prelude: Block | None) -> _BlockCones:
    structure = block.structure
    context = _contexts(block, prelude)
    parts = [[name, value] for name, value in sorted(block.parts.items()) if name not in ("prelude", "contexts")]
    found = []
    for op in structure.ops:
        if op.target == _ATTENTION:
            wanted = op.args[1:3]
            inside = _ancestors(structure, wanted)
            content = json_digest("kv cone v1", _cone(block, inside, wanted, context))
            found.append((content, _elsewhere(structure, inside, op)))
    return _BlockCones(
        whole=json_digest("kv block v1", [parts, sorted(context.items())]),
        sees_all=any(op.target in _WHOLE_TEXT for op in structure.ops),
        keys_values=tuple(found),
    )


def _contexts(block: Block, prelude: Block | None) -> dict[str, str]:
    """For each context input of a block, the digest of all that it is computed from."""
    if not block.contexts:
        return {}
    assert prelude is not None, "a block that reads context has a prelude"
    found = {}
    for (name, _), index in zip(block.structure.contexts, block.contexts, strict=True):
        wanted: tuple[Arg, ...] = (Value(prelude.structure.returns[index]),)
        cone = _cone(prelude, _ancestors(prelude.structure, wanted), wanted, {})
        found[name] = json_digest("kv context v1", cone)
    return found


def _cone(block: Block, ops: Sequence[Op], wanted: tuple[Arg, ...], context: Mapping[str, str]) -> object:
    """Values and all that they are computed from inside their block; its input is accounted for by what is before."""
    leaves = [leaf for args in (wanted, *(op.args for op in ops)) for leaf in _leaves(args)]
    params = sorted({leaf.name for leaf in leaves if isinstance(leaf, Param)})
    bound = sorted({leaf.name for leaf in leaves if isinstance(leaf, Bound)})
    read = sorted({leaf.name for leaf in leaves if isinstance(leaf, Value)} & set(context))
    return [
        [f"%{op.result} = {op.target}({', '.join(map(format_arg, op.args))})" for op in ops],
        [format_arg(arg) for arg in wanted],
        [[name, block.tensors[name].digest] for name in params],
        [[name, block.parts[f"bind:{name}"]] for name in bound],
        [[name, context[name]] for name in read],
        [[name, str(kind)] for name, kind in block.structure.inputs],
    ]


def _ancestors(structure: Structure, wanted: tuple[Arg, ...]) -> list[Op]:
    """Ops that the wanted values need, in order; other attention ops of the block included."""
    needed = {leaf.name for leaf in _leaves(wanted) if isinstance(leaf, Value)}
    kept: list[Op] = []
    for op in reversed(structure.ops):
        if op.result in needed:
            kept.append(op)
            needed |= {leaf.name for leaf in _leaves(op.args) if isinstance(leaf, Value)}
    return kept[::-1]


def _leaves(args: tuple[Arg, ...]) -> list[Arg]:
    found: list[Arg] = []
    for arg in args:
        found += _leaves(arg) if isinstance(arg, tuple) else [arg]
    return found


def _elsewhere(structure: Structure, inside: Sequence[Op], attention: Op) -> frozenset[str]:
    """Names of the sites that keys and values of ``attention`` do not pass.

    All but those at the ops inside their cone, and what puts other keys and values in their place.
    """
    passed = {op.result for op in inside}
    return frozenset(
        name
        for name, place in sites_of(structure).items()
        if not place.ops & passed and not (place.kind == "cache" and attention.result in place.ops)
    )
