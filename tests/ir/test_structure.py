"""The text of a structure is canonical, and nothing else can be read as one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockc.ir import (
    Bound,
    DtypeArg,
    Op,
    Param,
    Structure,
    StructureError,
    Symbol,
    Value,
    ValueType,
    format_structure,
    parse_structure,
    structure_digest,
)
from blockc.ir.ops import OPS

TEXT = """structure v1
input x: BF16[1,T,8]
context c0: BF16[1,T,4]
bind scale0
param w: BF16[8,8]
%0 = blockc.linear(%x, @w, none, "self_attn.q_proj")
%1 = aten.reshape.default(%0, [1, T, 2, 4])
%2 = aten.mul.Tensor(%1, -0x1.8000000000000p+0)
%3 = aten.cat.default([%2, %1], 3)
return %3
"""

_names = st.sampled_from(["x", "y", "a.b.weight", "h0"])
_leaf = st.one_of(
    st.builds(Value, st.just("x")),
    st.builds(Param, st.just("w")),
    st.builds(Bound, st.just("s")),
    st.just(Symbol("T")),
    st.builds(DtypeArg, st.sampled_from(["F32", "BF16"])),
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.text(alphabet="abc._0", max_size=8),
)
_arg = st.one_of(_leaf, st.lists(_leaf, max_size=3).map(tuple))


@st.composite
def _structures(draw):
    ops = []
    for index in range(draw(st.integers(0, 4))):
        target = draw(st.sampled_from(sorted(set(OPS) - {"blockc.linear"})))
        count = draw(st.integers(OPS[target].min_args, OPS[target].max_args))
        ops.append(Op(result=str(index), target=target, args=tuple(draw(_arg) for _ in range(count))))
    kind = ValueType(dtype="BF16", shape=(1, "T", 8))
    return Structure(
        inputs=(("x", kind),),
        contexts=(),
        binds=("s",),
        params=(("w", ValueType(dtype="BF16", shape=(8, 8))),),
        ops=tuple(ops),
        returns=(ops[-1].result if ops else "x",),
    )


def test_the_text_of_the_documentation_round_trips():
    assert format_structure(parse_structure(TEXT)) == TEXT


@given(_structures())
def test_every_structure_round_trips(structure):
    again = parse_structure(format_structure(structure))
    assert again == structure
    assert structure_digest(again) == structure_digest(structure)


@given(st.data())
def test_damaged_text_is_refused_or_still_a_structure(data):
    position = data.draw(st.integers(0, len(TEXT) - 1))
    text = TEXT[:position] + data.draw(st.text(max_size=3)) + TEXT[position + data.draw(st.integers(0, 3)) :]
    try:
        structure = parse_structure(text)
    except StructureError:
        return
    assert format_structure(parse_structure(format_structure(structure))) == format_structure(structure)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("structure v1", "structure v2"),
        ("aten.mul.Tensor", "aten.mul_.Tensor"),
        ("aten.mul.Tensor", "os.system"),
        ("blockc.linear(%x, @w, none,", "blockc.linear(%x, @w,"),
        ("%1 = aten.reshape.default(%0", "%1 = aten.reshape.default(%9"),
        ("%2 = ", "%1 = "),
        ("@w, none", "@v, none"),
        ("BF16[8,8]", "BF17[8,8]"),
        ("[1, T, 2, 4]", "[1, T, 2, 4"),
        ("[1, T, 2, 4]", "[" * 40 + "1" + "]" * 40),
        ("return %3", "return %7"),
        ("return %3\n", ""),
    ],
)
def test_what_is_not_allowed_is_refused(old, new):
    assert old in TEXT
    with pytest.raises(StructureError):
        parse_structure(TEXT.replace(old, new, 1))
