"""``KvDomain``: a digest of all that influences one layer's keys and values.

Equal domains mean equal K and V for equal tokens, whatever comes later in the chain. What counts is decided by
dataflow: everything before the block that holds the attention op, and inside it only what the key and value operands
are computed from. A LoRA on the query projection or on the MLP of the same layer therefore leaves the domain alone
and changes those above.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockc.graph import Block, Chain
from blockc.ir import Bound, Op, Param, Side, Structure, Value, json_digest, side_digest
from blockc.ir.structure import Arg, format_arg


def kv_domains(chain: Chain) -> tuple[str, ...]:
    """One digest per attention op of the chain, in order."""
    path = chain.path
    sides: dict[int, dict[str, Side]] = {}
    for side in chain.sides:
        sides.setdefault(side.site.occurrence, {})[side.site.name] = side
    before = json_digest("kv prefix v1", [path.dtype])
    domains: list[str] = []
    for occurrence, block in enumerate(path.blocks):
        own = sides.get(occurrence, {})
        for op in block.structure.ops:
            if op.target == "blockc.attention":
                cache = path.kv_layers[len(domains)].dtype
                domains.append(json_digest("kv domain v1", [before, cache, _cone(block, op, own)]))
        before = json_digest("kv prefix v1", [before, block.digest, _side_digests(own)])
    return tuple(domains)


def _cone(block: Block, attention: Op, sides: Mapping[str, Side]) -> object:
    """All that the key and value operands are computed from inside their block."""
    ops = _ancestors(block.structure, attention.args[1:3])
    params = sorted({arg.name for op in ops for arg in _leaves(op.args) if isinstance(arg, Param)})
    bound = sorted({arg.name for op in ops for arg in _leaves(op.args) if isinstance(arg, Bound)})
    sites = {str(op.args[3]) for op in ops if op.target == "blockc.linear"}
    return [
        [f"%{op.result} = {op.target}({', '.join(map(format_arg, op.args))})" for op in ops],
        [format_arg(arg) for arg in attention.args[1:3]],
        [[name, block.tensors[name].digest] for name in params],
        [[name, _scalar(block.binds[name])] for name in bound],
        [block.prelude, list(block.contexts)],
        _side_digests({name: side for name, side in sides.items() if name in sites}),
    ]


def _scalar(value: float | int | None) -> str | int | None:
    return value.hex() if isinstance(value, float) else value


def _ancestors(structure: Structure, wanted: tuple[Arg, ...]) -> list[Op]:
    """Ops that the wanted values need, in order; other attention ops of the block included."""
    needed = {arg.name for arg in _leaves(wanted) if isinstance(arg, Value)}
    kept: list[Op] = []
    for op in reversed(structure.ops):
        if op.result in needed:
            kept.append(op)
            needed |= {arg.name for arg in _leaves(op.args) if isinstance(arg, Value)}
    return kept[::-1]


def _leaves(args: tuple[Arg, ...]) -> list[Arg]:
    found: list[Arg] = []
    for arg in args:
        found += _leaves(arg) if isinstance(arg, tuple) else [arg]
    return found


def _side_digests(sides: Mapping[str, Side]) -> list[str]:
    return [side_digest(sides[name]) for name in sorted(sides)]
