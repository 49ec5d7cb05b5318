"""Which matrices of a block are kept as integers.

In: a structure. Out: names of parameters. Left as they are: tables and heads, for rows of them are read or compared one
by one; what decides which experts run, for a small error there is another expert; vectors, which weigh nothing.
"""

from __future__ import annotations

from functools import lru_cache

from blockc.ir import Op, Param, Structure, Value, sites_of


@lru_cache(maxsize=1024)
def quantizable(structure: Structure) -> frozenset[str]:
    """The matrices of linears and experts that every token passes."""
    routers = _routers(structure)
    linears = {
        place.param
        for place in sites_of(structure).values()
        if place.kind == "linear" and place.param is not None and not place.after_selection and not place.ops & routers
    }
    experts = {
        op.args[1].name for op in structure.ops if op.target == "blockc.expert_linear" and isinstance(op.args[1], Param)
    }
    tables = {
        op.args[1].name for op in structure.ops if op.target == "blockc.embedding" and isinstance(op.args[1], Param)
    }
    return frozenset(linears | experts) - tables


def _routers(structure: Structure) -> frozenset[str]:
    """Results of the linears that a choice of experts is made of, through whatever stands between."""
    makers: dict[str, Op] = {op.result: op for op in structure.ops}
    waiting = [op for op in structure.ops if op.target.startswith("blockc.topk_")]
    found, seen = set[str](), set[str]()
    while waiting:
        for arg in waiting.pop().args:
            if not isinstance(arg, Value) or arg.name in seen or (maker := makers.get(arg.name)) is None:
                continue
            seen.add(arg.name)
            if maker.target == "blockc.linear":
                found.add(maker.result)
            else:
                waiting.append(maker)
    return frozenset(found)
