"""Whether an adapter brings a head of its own, from its configuration and the names and shapes of its tensors.

PEFT saves a classifier whole, beside an adapter that was trained for `SEQ_CLS`; how many classes there are is the
height of its last matrix, since the configuration does not say. An adapter of an embedding model may be pooled in its
own way, which sentence-transformers writes beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from blockc.architectures import ENCODERS
from blockc.diag import Diagnostics, Span
from blockc.fine_tunes import kind_of_adapter
from blockc.ir.strict_json import StrictJsonError
from blockc.trace import Head
from blockc.tune.adapter import plain
from blockc.tune.adapter_config import short
from blockc.tune.checkpoint import read_json
from blockc.tune.head import MODULES, MOST_CLASSES, UnknownHeadError, class_names, pooled_head

# What PEFT adds to `modules_to_save` of an adapter for SEQ_CLS, whether the model has such modules or not.
CLASSIFIERS = ("classifier", "score")
# The matrix whose rows are classes, in models of transformers.
_LAST = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
_OF_TOKENS = {"QUESTION_ANS": "where an answer begins and ends"}
_VIRTUAL = ("prompt", "prefix")

Found = tuple[Head, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Below:
    """What an adapter stands on: what that yields, and config.json of the whole model in it."""

    head: Head
    labels: tuple[str, ...]
    config: Mapping[str, Any]


def read_adapter_head(
    directory: Path,
    config: Mapping[str, Any],
    below: Below,
    *,
    configuration_only: bool,
    written: str,
    diags: Diagnostics,
    at: Span,
) -> Found | None:
    """What an adapter yields, and the names of its classes. Problems go to ``diags`` (BC202, BC205, BC208, BC211)."""
    task = config.get("task_type")
    if isinstance(task, str) and task in _OF_TOKENS:
        diags.report(
            "BC208", f"{written} was trained for {task}: it yields {_OF_TOKENS[task]}", at=at,
            help="what is served yields tokens, an embedding, or scores of classes for a text or each of its tokens",
        )  # fmt: skip
        return None
    # Readers refuse virtual tokens of any task but generation, and without tensors `modules_to_save`.
    elsewhere = configuration_only or kind_of_adapter(config) in _VIRTUAL
    if is_for_classes(config) and not elsewhere:
        kind: Literal["classification", "token_classification"] = (
            "token_classification" if _is_for_tokens(config) else "classification"
        )
        causal = below.config.get("model_type") not in ENCODERS
        return _classes(directory, below, Head(kind=kind, causal=causal), written=written, diags=diags, at=at)
    if (directory / MODULES).is_file():
        return _pooled(directory, below, written=written, diags=diags, at=at)
    return below.head, below.labels


def is_for_classes(config: Mapping[str, Any]) -> bool:
    """Whether an adapter was trained on a model that yields scores of classes, of texts or of their tokens."""
    return (
        config.get("task_type") == "SEQ_CLS"
        or _was_trained_on(config, "ForSequenceClassification")
        or (_is_for_tokens(config))
    )


def _is_for_tokens(config: Mapping[str, Any]) -> bool:
    return config.get("task_type") == "TOKEN_CLS" or _was_trained_on(config, "ForTokenClassification")


def _was_trained_on(config: Mapping[str, Any], ending: str) -> bool:
    mapping = config.get("auto_mapping")
    return isinstance(mapping, dict) and str(mapping.get("base_model_class")).endswith(ending)


def _classes(directory: Path, below: Below, head: Head, *, written: str, diags: Diagnostics, at: Span) -> Found | None:
    count = class_count(directory)
    if count is None:
        if (below.labels and below.head.kind == head.kind) or not _shapes(directory):
            return below.head, below.labels
        diags.report(
            "BC211", f"{written} was trained for classification, and holds no classifier", at=at,
            notes=(f"none of {', '.join(_LAST)} is in its file, and its base has no classifier",),
            help="save the adapter again with `modules_to_save` naming the classifier, or name a base that has one",
        )  # fmt: skip
        return None
    if not 0 < count <= MOST_CLASSES:
        diags.report("BC202", f"{written} has a classifier for {count} classes", at=at, help="save the adapter again")
        return None
    if not (directory / "config.json").is_file():
        return head, below.labels if len(below.labels) == count else class_names({}, count)
    beside = read_json(directory / "config.json", written=written, diags=diags, at=at)
    if beside is None:
        return None
    stated = beside.get("id2label", beside.get("num_labels"))
    stated = len(stated) if isinstance(stated, dict) else stated
    if stated not in (None, count):
        diags.report(
            "BC202", f"config.json of {written} is for {short(stated)} classes, its classifier for {count}", at=at,
            help="the two come from different trainings: copy the adapter again, or remove config.json",
        )  # fmt: skip
        return None
    return head, class_names(beside, count)


def class_count(directory: Path) -> int | None:
    """Classes by the last matrix of an adapter's classifier; None if it has no classifier."""
    shapes = _shapes(directory)
    return next((shapes[name][0] for name in _LAST if len(shapes.get(name, ())) == 2), None)


def _shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """By plain name; empty if the file cannot be read, which is reported by who reads all of it."""
    try:
        with safe_open(directory / "adapter_model.safetensors", framework="pt") as handle:
            names = handle.keys()
            return {plain(name): tuple(handle.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError):
        return {}


def _pooled(directory: Path, below: Below, *, written: str, diags: Diagnostics, at: Span) -> Found | None:
    try:
        causal = below.config.get("model_type") not in ENCODERS
        if below.head.kind != "embedding" and not causal:
            raise UnknownHeadError("it has sentence-transformers' files, and its base yields no embedding")
        return pooled_head(directory, causal=causal), ()
    except (UnknownHeadError, OSError, StrictJsonError) as error:
        diags.report(
            "BC205", f"what {written} yields is not understood: {str(error)[:200]}", at=at,
            help="embeddings are those of encoders (`BertModel`), pooled by the first or last token or their mean, and "
            "of decoders, by the last token; without modules.json it is served as what its base yields",
        )  # fmt: skip
        return None
