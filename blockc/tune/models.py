"""What each base and fine-tune of a deployment is, read from its directory: configuration and kind, no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockc.architectures import why_not
from blockc.diag import Diagnostics, Span
from blockc.fine_tunes import BIAS, FULL, kind_of_adapter
from blockc.graph import Embedding
from blockc.spec.deployment import Assumption, Base, Deployment, FineTune, Source
from blockc.trace import TOKENS, Head
from blockc.tune.adapter_head import Below, read_adapter_head
from blockc.tune.assets import check_assets
from blockc.tune.checkpoint import only_vectors, read_json
from blockc.tune.coded import Coding, read_coding, without_coding
from blockc.tune.head import embedding_of, model_classes, read_head
from blockc.tune.source import locate, written_as

# Entries of `auto_map` that replace the model itself; a tokenizer's code is no concern of the weights.
_OWN_CODE = {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A base or fine-tune on disk. ``config`` is config.json, or an adapter's adapter_config.json.

    ``kind``: ``base``, or a word of `blockc.fine_tunes`.

    ``lineage``: names from this model down to its base. What is assumed has its parent's directory, for the assets,
    and the configuration that its files would have.

    ``coding``: of a model whose matrices are integers in its files.

    ``head``, ``labels`` and ``embedding``: what it yields, and more of its classes or vector. ``own_head``: an adapter
    that yields through another head than the model below it.
    """

    name: str
    kind: str
    source: Source | Assumption
    directory: Path
    written: str
    config: Mapping[str, Any]
    lineage: tuple[str, ...]
    base: Base
    span: Span
    head: Head = TOKENS
    labels: tuple[str, ...] = ()
    embedding: Embedding | None = None
    own_head: bool = False
    coding: Coding | None = None

    @property
    def is_full(self) -> bool:
        """Whether it is a whole model rather than an adapter on one."""
        return self.kind in ("base", FULL)


def read_models(
    deployment: Deployment, *, diags: Diagnostics, configuration_only: bool = False
) -> dict[str, ModelFiles]:
    """Every base and fine-tune that can be read, parents before children. Problems go to ``diags``.

    ``configuration_only``: weights and tokenizers are neither needed nor looked at.
    """
    models: dict[str, ModelFiles] = {}
    for base in deployment.bases.values():
        files = _read(base, base, (base.name,), None, configuration_only, diags=diags)
        if files is not None:
            models[base.name] = files
    for name in _parents_first(deployment):
        fine_tune = deployment.fine_tunes[name]
        parent = models.get(fine_tune.parent)
        if parent is None:
            continue  # its own problem has been reported
        if isinstance(fine_tune.source, Assumption):
            files = _assumed(fine_tune, fine_tune.source, parent, diags=diags)
        else:
            full = next(models[step] for step in parent.lineage if models[step].is_full)
            below = Below(head=parent.head, labels=parent.labels, config=full.config)
            files = _read(fine_tune, parent.base, (name, *parent.lineage), below, configuration_only, diags=diags)
        if files is not None:
            models[name] = files
    if configuration_only:
        return models
    intact: set[str] = set()
    for files in models.values():
        check_assets(files.directory, intact, written=files.written, diags=diags, at=files.span)
    return models


def _parents_first(deployment: Deployment) -> list[str]:
    ordered: list[str] = []

    def visit(name: str) -> None:
        if name in deployment.fine_tunes and name not in ordered:
            visit(deployment.fine_tunes[name].parent)
            ordered.append(name)

    for name in deployment.fine_tunes:
        visit(name)
    return ordered


def _assumed(item: FineTune, assumption: Assumption, parent: ModelFiles, *, diags: Diagnostics) -> ModelFiles | None:
    """A fine-tune of which there is only what the spec says of it."""
    config = parent.config
    if assumption.kind == "lora":
        targets = "all-linear" if assumption.targets == ("all-linear",) else list(assumption.targets)
        config = {
            "peft_type": "LORA", "r": assumption.rank, "lora_alpha": assumption.rank, "target_modules": targets,
        }  # fmt: skip
    elif not parent.is_full:
        diags.report(
            "BC208", f"`{item.name}` is assumed to be a full fine-tune of the adapter `{item.parent}`", at=item.span,
            help=f"derive it from `{parent.base.name}`: merging the adapter changes every layer that it acts on",
        )  # fmt: skip
        return None
    return ModelFiles(
        name=item.name,
        kind=assumption.kind,
        source=assumption,
        directory=parent.directory,
        written=f"the assumed `{item.name}`",
        config=config,
        lineage=(item.name, *parent.lineage),
        base=parent.base,
        span=item.source_span,
        head=parent.head,
        labels=parent.labels,
        embedding=parent.embedding,
    )


def _read(
    item: Base | FineTune,
    base: Base,
    lineage: tuple[str, ...],
    below: Below | None,
    configuration_only: bool,
    *,
    diags: Diagnostics,
) -> ModelFiles | None:
    assert not isinstance(item.source, Assumption)
    at, written = item.source_span, written_as(item.source)
    directory = locate(item.source, diags=diags, at=at, configuration_only=configuration_only)
    if directory is None:
        return None
    adapter = not isinstance(item, Base) and (directory / "adapter_config.json").is_file()
    vectors = not adapter and isinstance(item, FineTune) and not configuration_only and only_vectors(directory)
    config: dict[str, Any] | None = {}
    if not vectors:
        name = "adapter_config.json" if adapter else "config.json"
        config = read_json(directory / name, written=written, diags=diags, at=at)
    if config is None:
        return None
    if isinstance(item, Base) and (directory / "adapter_config.json").is_file():
        # transformers would load the model that the adapter names, and the adapter on top of it.
        diags.report(
            "BC208", f"{written} is declared as a base and holds an adapter", at=at,
            help="declare the adapter as a `finetune` of its base, or move adapter_config.json away",
        )  # fmt: skip
        return None
    kind = _kind(item, config, adapter=adapter, vectors=vectors)
    if isinstance(item, FineTune) and item.kind not in (None, kind):
        diags.report(
            "BC208", f"`{item.name}` is declared as {item.kind}, its files are those of a {kind} fine-tune", at=at,
            help=f"write `kind = {kind}`, or leave the attribute out",
        )  # fmt: skip
        return None
    coding = None
    if kind in ("base", FULL):
        if not _supported(config, written=written, diags=diags, at=at):
            return None
        coding = read_coding(config, written=written, diags=diags, at=at)
        if coding is None and config.get("quantization_config"):
            return None
        config = without_coding(config)
        head = read_head(directory, config, written=written, diags=diags, at=at)
        if head is None:
            return None
        labels = model_classes(config) if head.has_classes else ()
        trained = config
    else:
        assert below is not None, "what is no whole model stands on one"
        found = read_adapter_head(
            directory, config, below, configuration_only=configuration_only, written=written, diags=diags, at=at
        )
        if found is None:
            return None
        head, labels = found
        # What a fine-tune makes of a shorter vector, its base cannot say.
        own = directory / "config.json"
        trained = (read_json(own, written=written, diags=diags, at=at) if own.is_file() else None) or {}
    return ModelFiles(
        name=item.name,
        kind=kind,
        source=item.source,
        directory=directory,
        written=written,
        config=config,
        lineage=lineage,
        base=base,
        span=at,
        head=head,
        labels=labels,
        embedding=embedding_of(head, trained),
        coding=coding,
        own_head=below is not None and kind != FULL and (head, len(labels)) != (below.head, len(below.labels)),
    )


def _kind(item: Base | FineTune, config: Mapping[str, Any], *, adapter: bool, vectors: bool) -> str:
    if isinstance(item, Base):
        return "base"
    if vectors:
        return BIAS
    return kind_of_adapter(config) if adapter else FULL


def _supported(config: Mapping[str, Any], *, written: str, diags: Diagnostics, at: Span) -> bool:
    """Models that need code of their own are refused before anything is built."""
    code = config.get("auto_map")
    if isinstance(code, dict) and (needs := sorted(_OWN_CODE & code.keys())):
        diags.report(
            "BC205", f"{written} brings code of its own ({needs[0]})", at=at,
            notes=("what that code computes is not what the architecture it derives from computes",),
            help="if the model is a plain one of its type, remove `auto_map` from its config.json",
        )  # fmt: skip
        return False
    model_type = config.get("model_type")
    if (reason := why_not(model_type)) is not None:
        diags.report(
            "BC205", f"{written} is a model of the type {str(model_type)[:40]!r}, {reason}", at=at,
            help="`blockc rule BC205` lists what is supported",
        )  # fmt: skip
        return False
    return True
