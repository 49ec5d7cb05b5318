"""The intermediate representation: structures, tensors by content, sites and sides, bytes in memory."""

from __future__ import annotations

from blockc.ir.canonical import canonical_json, json_digest, text_digest
from blockc.ir.codecs import CODECS, side_problems
from blockc.ir.identity import block_parts, differing_parts
from blockc.ir.parse import StructureError, parse_structure, verify_structure
from blockc.ir.side import Scalar, Side, Site, Term, effective_sides, low_rank, scalar_text, side_digest, term
from blockc.ir.sites import Place, SiteKind, place_of, sites_of
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
from blockc.ir.tensor import (
    CACHE_DTYPE_CODE,
    DTYPE_BYTES,
    DTYPE_CODE,
    DTYPE_NAME,
    QuantizedRef,
    TensorRef,
    quantized_ref,
    tensor_digest,
)

__all__ = [
    "CACHE_DTYPE_CODE",
    "CODECS",
    "DTYPE_BYTES",
    "DTYPE_CODE",
    "DTYPE_NAME",
    "Arg",
    "Bound",
    "Dim",
    "DtypeArg",
    "Op",
    "Param",
    "Place",
    "QuantizedRef",
    "Scalar",
    "Side",
    "Site",
    "SiteKind",
    "Structure",
    "StructureError",
    "Symbol",
    "TensorRef",
    "Term",
    "Value",
    "ValueType",
    "block_parts",
    "canonical_json",
    "differing_parts",
    "effective_sides",
    "format_structure",
    "json_digest",
    "low_rank",
    "parse_structure",
    "place_of",
    "quantized_ref",
    "scalar_text",
    "side_digest",
    "side_problems",
    "sites_of",
    "structure_digest",
    "tensor_digest",
    "term",
    "text_digest",
    "verify_structure",
]
