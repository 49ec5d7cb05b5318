"""Models as they were read: where each comes from, what it derives from, its configuration. No absolute paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from blockc.ir.canonical import canonical_json
from blockc.render.units import counted, printable

if TYPE_CHECKING:
    from blockc.tune import ModelFiles


def render_models(models: Mapping[str, ModelFiles]) -> str:
    """One section a model, parents before children."""
    return "\n".join(["MODELS  (" + counted(len(models), "model") + ")", *_lines(models)]) + "\n"


def _lines(models: Mapping[str, ModelFiles]) -> Iterator[str]:
    for name, files in models.items():
        yield ""
        yield f"model {printable(name)}: {files.kind}"
        yield f"  source   {printable(files.written)}"
        yield f"  lineage  {' : '.join(map(printable, files.lineage))}"
        if files.kind == "base":
            yield f"  dtype    {files.base.dtype}, KV cache {files.base.kv_cache_dtype}"
            length = files.base.max_model_len
            yield f"  length   {'as configured' if length is None else counted(length, 'token')}"
        for key in sorted(files.config):
            yield f"  config   {printable(key)} = {canonical_json(files.config[key])}"
