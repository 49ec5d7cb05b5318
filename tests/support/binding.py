"""A traced model bound to a directory, without the stages around it."""

from __future__ import annotations

from pathlib import Path

from blockc.diag import Diagnostics, Span
from blockc.graph import ModelPath
from blockc.trace import TracedModel
from blockc.tune.checkpoint import open_checkpoint
from blockc.tune.full import OnBytes, bind_checkpoint
from blockc.zoo import Zoo

AT = Span(file="test.blk", start_line=1, start_column=1, end_line=1, end_column=2)


def bound(
    traced: TracedModel, directory: Path, zoo: Path, *, on_bytes: OnBytes = lambda done, total: None
) -> tuple[ModelPath | None, dict[str, str]]:
    """The path, and what was reported: code -> message and notes."""
    diags = Diagnostics()
    checkpoint = open_checkpoint(
        directory, stem="model", index="model.safetensors.index.json", written=directory.name, diags=diags, at=AT
    )
    path = None
    if checkpoint is not None:
        path = bind_checkpoint(
            traced, checkpoint, zoo=Zoo(zoo, create=True), max_model_len=128, kv_dtype="F32",
            written=directory.name, diags=diags, at=AT, on_bytes=on_bytes,
        )  # fmt: skip
    assert (path is None) == diags.has_errors
    return path, {item.code.id: " ".join((item.message, *item.notes)) for item in diags}
