"""Structures as text: the canonical form under a short header, and of traced models where each parameter comes from.

In: a plan, or what tracing yields. Out: text. Invariant: what is indented by four under a structure is its canonical
text, whose SHA-256 is the structure's digest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from blockc.ir import Structure, format_structure, parse_structure, structure_digest
from blockc.ir.tensor import DTYPE_BYTES
from blockc.plan import ExecutionPlan
from blockc.render.units import counted, format_bytes, printable, short

if TYPE_CHECKING:
    from blockc.trace import TracedModel
    from blockc.trace.model import TracedBlock


def render_structures(plan: ExecutionPlan) -> str:
    """The structures of a plan, each with the number of blocks that are made of it."""
    users = dict.fromkeys(plan.structures, 0)
    for block in plan.blocks.values():
        users[block.structure] += 1
    lines = [f"STRUCTURES  ({counted(len(users), 'structure')})"]
    for digest, text in plan.structures.items():
        lines += ["", *structure_lines(digest, parse_structure(text), counted(users[digest], "block"))]
    return "\n".join(lines) + "\n"


def render_traced(models: Mapping[str, TracedModel]) -> str:
    """Traced models, and the structures that they are made of, each once."""
    lines = [f"TRACED MODELS  ({counted(len(models), 'model')})"]
    structures: dict[str, Structure] = {}
    users: dict[str, dict[str, int]] = {}
    for name, model in models.items():
        lines += ["", *_model(name, model)]
        for _, block in _places(model):
            digest = structure_digest(block.structure)
            structures[digest] = block.structure
            counts = users.setdefault(digest, {})
            counts[name] = counts.get(name, 0) + 1
    lines += ["", f"STRUCTURES  ({counted(len(structures), 'structure')})"]
    for digest, structure in structures.items():
        lines += ["", *structure_lines(digest, structure, _counts(users[digest]))]
    return "\n".join(lines) + "\n"


def structure_lines(digest: str, structure: Structure, users: str) -> Iterator[str]:
    """Header and canonical text. ``users``: what is made of it, in words."""
    values = sum(_bytes(type_.dtype, type_.shape) for _, type_ in structure.params)
    yield f"structure {short(digest)}: {users}"
    yield (
        f"  {counted(len(structure.ops), 'op')}, {counted(len(structure.params), 'parameter')} of "
        f"{format_bytes(values)}, {counted(structure.attention_count, 'attention op')}"
    )
    if structure.sites:
        yield f"  sites: {', '.join(map(printable, structure.sites))}"
    for line in format_structure(structure).splitlines():
        yield f"    {printable(line)}"


def _counts(users: Mapping[str, int]) -> str:
    return ", ".join(f"{counted(count, 'block')} of {printable(name)}" for name, count in users.items())


def _bytes(dtype: str, shape: tuple[Any, ...]) -> int:
    nbytes = DTYPE_BYTES[dtype]
    for size in shape:
        nbytes *= size if isinstance(size, int) else 1
    return nbytes


def _places(model: TracedModel) -> Iterator[tuple[str, TracedBlock]]:
    if model.prelude is not None:
        yield "prelude", model.prelude
    for index, block in enumerate(model.blocks):
        yield f"block {index}", block


def _model(name: str, model: TracedModel) -> Iterator[str]:
    positions = "any number of" if model.max_positions is None else str(model.max_positions)
    yield f"model {printable(name)}: {model.architecture}, {model.dtype}"
    yield f"  {counted(len(model.blocks), 'block')}, vocabulary {model.vocab_size}, {positions} positions"
    for index, layer in enumerate(model.kv_layers):
        window = "" if layer.window is None else f", window {layer.window}"
        yield f"  KV layer {index}: {counted(layer.kv_heads, 'head')} of {layer.head_dim}{window}"
    for place, block in _places(model):
        yield f"  {place}: structure {short(structure_digest(block.structure))}"
        for param, source in block.sources.items():
            yield f"    param {printable(param)} <- {_source(source)}"
        for bind, value in block.binds.items():
            yield f"    bind {printable(bind)} = {'none' if value is None else value}"
        for (context, _), output in zip(block.structure.contexts, block.contexts, strict=True):
            yield f"    context {printable(context)} <- output {output} of the prelude"
        for site, module in block.sites.items():
            yield f"    site {printable(site)} = {printable(module)}"


def _source(source: Any) -> str:
    """The parameter's name, and what else is said of it."""
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    name = printable(str(fields.pop("name", "")))
    said = [f"{key}={value}" for key, value in fields.items() if value not in (None, "none", (), "")]
    return f"{name} ({', '.join(map(printable, said))})" if said else name
