"""What a checkpoint yields, from its configuration: tokens, an embedding, or scores of classes.

The architecture's name says it; how an embedding is pooled is read from the files that sentence-transformers writes
beside a model (``modules.json``, ``1_Pooling/config.json``). Without them it is the mean of the tokens, as
sentence-transformers has it for a plain model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockc.architectures import ENCODERS
from blockc.diag import Diagnostics, Span
from blockc.graph import Embedding
from blockc.ir.strict_json import StrictJsonError, parse_strict_json
from blockc.trace import TOKENS, WITH_UNUSED_HEADS, Head, Pooling, UntraceableError, config_of

MOST_CLASSES = 1 << 16
_POOLINGS: dict[str, Pooling] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
MODULES = "modules.json"
# What sentence-transformers does to texts before they are tokenised, where these are true or not empty.
_OF_TEXTS = {
    "sentence_bert_config.json": "do_lower_case",
    "config_sentence_transformers.json": "default_prompt_name",
}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_SCORES = "ForSequenceClassification"
_EACH_TOKEN = "ForTokenClassification"  # noqa: S105 - no token of that sort


class UnknownHeadError(ValueError):
    """What of the files is not understood."""


def read_head(directory: Path, config: Mapping[str, Any], *, written: str, diags: Diagnostics, at: Span) -> Head | None:
    """The head of a full checkpoint. Problems go to ``diags`` (BC205); then None."""
    try:
        if config.get("model_type") in ENCODERS:
            return encoder_head(directory, config)
        if _architecture(config).endswith(_SCORES):
            return Head(kind="classification", causal=True)
        if _architecture(config).endswith(_EACH_TOKEN):
            return Head(kind="token_classification", causal=True)
        return pooled_head(directory, causal=True) if (directory / MODULES).is_file() else TOKENS
    except (UnknownHeadError, OSError, StrictJsonError) as error:
        diags.report(
            "BC205", f"what {written} yields is not understood: {str(error)[:200]}", at=at,
            help="an encoder yields an embedding (`BertModel`, with sentence-transformers' pooling if it has one) "
            "or scores of classes (`BertForSequenceClassification`, `BertForTokenClassification`); a decoder with "
            "modules.json the embedding of its last token, and without it tokens",
        )  # fmt: skip
        return None


def encoder_head(directory: Path, config: Mapping[str, Any]) -> Head:
    """The head of an encoder. Raises OSError, ValueError."""
    architecture = _architecture(config)
    if architecture.endswith(_SCORES):
        return Head(kind="classification")
    if architecture.endswith(_EACH_TOKEN):
        return Head(kind="token_classification")
    if not architecture.endswith(("Model", *WITH_UNUSED_HEADS)):
        raise UnknownHeadError(f"`architectures` of its config.json is {json.dumps(config.get('architectures'))[:80]}")
    return pooled_head(directory)


def pooled_head(directory: Path, *, causal: bool = False) -> Head:
    """An embedding, pooled as sentence-transformers' files in a directory say. Raises OSError, ValueError.

    ``causal``: of a model that reads from left to right. There only the last token has seen the whole text.
    """
    modules = [str(item.get("type", "")).rsplit(".", 1)[-1] for item in _list(directory / MODULES)]
    if strange := [name for name in modules if name not in _KNOWN_MODULES]:
        raise UnknownHeadError(f"modules.json lists a module {strange[0]!r}")
    if modules and modules[:2] != ["Transformer", "Pooling"]:
        raise UnknownHeadError("modules.json does not list a transformer and its pooling")
    pooling = _pooling(directory / "1_Pooling" / "config.json") if modules else "mean"
    if causal and pooling != "last":
        raise UnknownHeadError(
            "a model that reads from left to right, with another pooling than that of the last token"
        )
    for name, field in _OF_TEXTS.items():
        if _object(directory / name).get(field):
            raise UnknownHeadError(f"{name} changes texts before they are read (`{field}`)")
    return Head(kind="embedding", pooling=pooling, normalize="Normalize" in modules, causal=causal)


def class_names(config: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of so many classes: those of ``id2label``, else as transformers calls them."""
    named = config.get("id2label")
    names = {str(key): name for key, name in named.items()} if isinstance(named, dict) else {}
    return tuple(str(names.get(str(place), f"LABEL_{place}")) for place in range(count))


def model_classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes that a whole model scores; none where transformers cannot read its configuration."""
    try:
        return class_names(config, config_of(config).num_labels)
    except UntraceableError:
        return ()  # which is reported when it is traced


def _architecture(config: Mapping[str, Any]) -> str:
    """The one that a checkpoint was saved as; empty if it does not say."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else ""


def embedding_of(head: Head, config: Mapping[str, Any]) -> Embedding | None:
    """What a model's embeddings are like, if it yields some; at which lengths, config.json says, as vLLM reads it."""
    if head.kind != "embedding":
        return None
    listed = config.get("matryoshka_dimensions")
    widths: tuple[int, ...] | None = None if config.get("is_matryoshka") is True else ()
    if isinstance(listed, list) and listed and all(type(item) is int and item > 0 for item in listed):
        widths = tuple(sorted(set(listed)))
    return Embedding(is_normalized=head.normalize, widths=widths)


def _pooling(path: Path) -> Pooling:
    values = _object(path, must_be=True)
    modes = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
             for key, on in values.items() if key.startswith("pooling_mode_") and on]  # fmt: skip
    modes = modes or [str(values.get("pooling_mode"))]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UnknownHeadError(f"a pooling of {', '.join(modes)}")
    return _POOLINGS[modes[0]]


def _object(path: Path, *, must_be: bool = False) -> dict[str, Any]:
    if not must_be and not path.is_file():
        return {}
    values = parse_strict_json(path.read_bytes())
    if not isinstance(values, dict):
        raise UnknownHeadError(f"{path.name} is not an object")
    return values


def _list(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    values = parse_strict_json(path.read_bytes())
    if not isinstance(values, list) or not all(isinstance(item, dict) for item in values):
        raise UnknownHeadError(f"{path.name} is not a list of modules")
    return values
