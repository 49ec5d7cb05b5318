"""Trace every full model of a deployment, and count its parameters. Equal configurations are traced once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from blockc.diag import Diagnostics
from blockc.ir import canonical_json
from blockc.trace import Head, Source, TracedBlock, TracedModel, UntraceableError, config_of, trace
from blockc.trace.rope import LONGROPE
from blockc.tune.models import ModelFiles

# What a checkpoint was saved in, by what and from what decides nothing: its tensors are cast to the spec's dtype.
_OF_THE_FILE = ("dtype", "torch_dtype", "_name_or_path", "transformers_version")
_OF_CLASSES = ("id2label", "label2id", "num_labels")


def trace_models(files: Mapping[str, ModelFiles], *, diags: Diagnostics) -> dict[str, TracedModel]:
    """By model name; of adapters those with a head of their own. Problems go to ``diags`` (BC205)."""
    known: dict[tuple[str, str, Head, int | None], TracedModel] = {}
    traced: dict[str, TracedModel] = {}
    for name, model in files.items():
        if not (model.is_full or model.own_head):
            continue
        full = next(files[step] for step in model.lineage if files[step].is_full)
        config = {field: value for field, value in full.config.items() if field not in _OF_THE_FILE}
        config = with_classes(config, len(model.labels))  # their names decide nothing
        if model.head.kind != "embedding":  # what a checkpoint was saved as says which head an embedding leaves out
            config.pop("architectures", None)
        written = canonical_json(config)
        length = model.base.max_model_len if LONGROPE in written else None  # otherwise it decides nothing
        key = (written, model.base.dtype, model.head, length)
        try:
            if key not in known:
                known[key] = trace(config_of(config), dtype=model.base.dtype, head=model.head, max_model_len=length)
            traced[name] = known[key]
        except UntraceableError as error:
            diags.report(
                "BC205",
                f"{model.written} cannot be traced: {error}",
                at=model.span,
                help="`blockc rule BC205` lists what is supported and why the rest is not",
            )
    return traced


def with_classes(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """A model's configuration for so many classes; 0: as it is."""
    if not count:
        return dict(config)
    return {field: value for field, value in config.items() if field not in _OF_CLASSES} | {"num_labels": count}


def parameter_of(traced: TracedModel, source: Source) -> str:
    """The parameter that a block's tensor is: of tied ones always the same."""
    return traced.loading.tied.get(source.name, source.name)


def parameter_shape(block: TracedBlock, param: str) -> tuple[int, ...]:
    """The shape of a parameter as the block keeps it."""
    shape = dict(block.structure.params)[param].shape
    sizes = tuple(size for size in shape if isinstance(size, int))
    assert len(sizes) == len(shape), "parameters have sizes, not symbols"
    return sizes


def parameter_count(traced: TracedModel) -> int:
    """Parameters of the model by its configuration; tied ones count once, buffers do not count."""
    sizes = {
        parameter_of(traced, source): math.prod(parameter_shape(block, param))
        for block in traced.blocks
        for param, source in block.sources.items()
        if source.name not in traced.buffers
    }
    return sum(sizes.values())
