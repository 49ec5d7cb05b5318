"""The intermediate representation: structures, tensors by content, sites and sides, bytes in memory."""

from __future__ import annotations

from blockc.ir.canonical import canonical_json, json_digest, text_digest
from blockc.ir.identity import block_parts, differing_parts
from blockc.ir.parse import StructureError, parse_structure, verify_structure
from blockc.ir.side import LowRank, Side, Site, effective_sides, side_digest
from blockc.ir.structure import (
    Arg,
    Bound,
    Dim,
    DtypeArg,
    Op,
    Param,
    Structure,
    Symbol,
    Value,
    ValueType,
    format_structure,
    structure_digest,
)
from blockc.ir.tensor import DTYPE_BYTES, DTYPE_CODE, DTYPE_NAME, TensorRef, tensor_digest

__all__ = [
    "DTYPE_BYTES",
    "DTYPE_CODE",
    "DTYPE_NAME",
    "Arg",
    "Bound",
    "Dim",
    "DtypeArg",
    "LowRank",
    "Op",
    "Param",
    "Side",
    "Site",
    "Structure",
    "StructureError",
    "Symbol",
    "TensorRef",
    "Value",
    "ValueType",
    "block_parts",
    "canonical_json",
    "differing_parts",
    "effective_sides",
    "format_structure",
    "json_digest",
    "parse_structure",
    "side_digest",
    "structure_digest",
    "tensor_digest",
    "text_digest",
    "verify_structure",
]
