"""What each fine-tune changes: every model of a deployment becomes a chain, with its tensors in the zoo.

In: files and traced structures. Out: a chain per base and fine-tune. Invariant: every tensor of every file is applied
or the model is refused; a chain equals its model run alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from blockc.diag import Diagnostics
from blockc.fine_tunes import BIAS, BOTTLENECK, why_refused
from blockc.graph import Chain, ModelPath
from blockc.ir import CACHE_DTYPE_CODE, Side, effective_sides
from blockc.spec.deployment import HubSource
from blockc.trace import TracedModel
from blockc.tune.adapter import AdapterFiles, Tuned
from blockc.tune.assets import stop_token_ids, store_assets, tokens_without_rows
from blockc.tune.checkpoint import Checkpoint, open_checkpoint
from blockc.tune.coded import decoded
from blockc.tune.draft import tables
from blockc.tune.full import OnBytes, bind_checkpoint, listed
from blockc.tune.heads import under_own_head, without_absent_classifiers
from blockc.tune.kinds import KINDS, READERS
from blockc.tune.models import ModelFiles
from blockc.tune.patterns import SECONDS, SlowPatternError
from blockc.tune.stack import StackError, stack_sides
from blockc.tune.traced import with_classes
from blockc.zoo import Zoo

# A model's name, bytes of its weights that are hashed and in the zoo, bytes of its weights in all.
OnModelBytes = Callable[[str, int, int], None]

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_QUANTISED = re.compile(r"(?i)(?<![a-z0-9])([2-8]-?bits?|bnb|gptq|awq|nf4|int[48]|fp8|gguf|w4a16)(?![a-z0-9])")


def tune(
    models: Mapping[str, ModelFiles],
    traced: Mapping[str, TracedModel],
    *,
    zoo: Zoo,
    diags: Diagnostics,
    on_bytes: OnModelBytes = lambda name, done, total: None,
) -> dict[str, Chain]:
    """Chains by model name. ``models`` lists parents before children; ``traced``: see `trace_models`."""
    chains: dict[str, Chain] = {}
    for name, files in models.items():
        parent = chains.get(files.lineage[1]) if len(files.lineage) > 1 else None
        progress = partial(on_bytes, name)
        if not files.is_full:
            own = Diagnostics()
            if parent is not None and files.own_head:
                parent = _under_own_head(files, parent, models, traced, zoo=zoo, diags=own)
            diags.items += own.items
            chain = _adapter_chain(files, parent, models, zoo=zoo, diags=diags, on_bytes=progress) if parent else None
        else:
            chain = _full_chain(files, traced.get(name), models, zoo=zoo, diags=diags, on_bytes=progress)
        if chain is not None:
            chains[name] = chain
    return chains


def _full_chain(
    files: ModelFiles,
    traced: TracedModel | None,
    models: Mapping[str, ModelFiles],
    *,
    zoo: Zoo,
    diags: Diagnostics,
    on_bytes: OnBytes,
) -> Chain | None:
    if traced is None:
        return None
    max_model_len = longest_sequence(files, traced, diags=diags)
    own = Diagnostics()  # a problem of one model must not hide those of the next
    checkpoint = _open_full(files, diags=own)
    path = (
        bind_checkpoint(
            traced,
            checkpoint,
            zoo=zoo,
            max_model_len=max_model_len,
            kv_dtype=CACHE_DTYPE_CODE[files.base.kv_cache_dtype],
            written=files.written,
            diags=own,
            at=files.span,
            on_bytes=on_bytes,
        )
        if checkpoint is not None
        else None
    )
    diags.items += own.items
    return _chain(path, (), files, models, zoo=zoo, diags=diags) if path is not None else None


def _open_full(files: ModelFiles, *, diags: Diagnostics) -> Checkpoint | None:
    checkpoint = open_checkpoint(
        files.directory,
        stem="model",
        index="model.safetensors.index.json",
        written=files.written,
        diags=diags,
        at=files.span,
    )
    if checkpoint is None:
        return None
    return decoded(checkpoint, files.coding, written=files.written, diags=diags, at=files.span)


def _open_adapter(files: ModelFiles, *, diags: Diagnostics) -> Checkpoint | None:
    stem = {BIAS: "model", BOTTLENECK: "adapter"}.get(files.kind, "adapter_model")
    return open_checkpoint(files.directory, stem=stem, index=None, written=files.written, diags=diags, at=files.span)


def _under_own_head(
    files: ModelFiles,
    parent: Chain,
    models: Mapping[str, ModelFiles],
    traced: Mapping[str, TracedModel],
    *,
    zoo: Zoo,
    diags: Diagnostics,
) -> Chain | None:
    """The model below an adapter, under the head that the adapter brings."""
    full = next(models[name] for name in files.lineage if models[name].is_full)
    adapter, base = _open_adapter(files, diags=diags), _open_full(full, diags=diags)
    if files.name not in traced or adapter is None or base is None:
        return None
    return under_own_head(
        files,
        parent,
        below=next(traced[name] for name in files.lineage[1:] if name in traced),
        traced=traced[files.name],
        adapter=adapter,
        base=base,
        zoo=zoo,
        diags=diags,
    )


def _adapter_chain(
    files: ModelFiles,
    parent: Chain,
    models: Mapping[str, ModelFiles],
    *,
    zoo: Zoo,
    diags: Diagnostics,
    on_bytes: OnBytes,
) -> Chain | None:
    own = Diagnostics()
    tuned = _read_adapter(files, parent, models, zoo=zoo, diags=own)
    diags.items += own.items
    if tuned is None or own.has_errors:
        return None
    own_bytes = sum(side.nbytes for side in tuned.sides)
    on_bytes(own_bytes, own_bytes)
    base_name = files.config.get("model_name" if files.kind == BOTTLENECK else "base_model_name_or_path")
    compare_names(files, base_name if isinstance(base_name, str) else None, diags=diags)
    if strange := tokens_without_rows(files.directory, tuned.path.vocab_size):
        diags.report(
            "BC213", f"the tokenizer of {files.written} has {len(strange)} tokens that it holds no rows for",
            at=files.span, notes=(listed(strange)[:200],),
            help="save the adapter again with `save_embedding_layers=True`; until then texts with them are refused",
        )  # fmt: skip
    try:
        sides = stack_sides(parent.sides, tuned.sides, zoo=zoo, resets=tuned.resets)
    except StackError as error:
        diags.report(
            "BC208", f"{files.written} cannot stand on `{files.lineage[1]}`: {error}", at=files.span,
            help="merge the lower one into its base, or train this one on the base",
        )  # fmt: skip
        return None
    return _chain(
        tuned.path,
        effective_sides(sides),
        files,
        models,
        zoo=zoo,
        diags=diags,
        virtual_tokens=tuned.virtual_tokens + parent.virtual_tokens,
    )


def _read_adapter(
    files: ModelFiles, parent: Chain, models: Mapping[str, ModelFiles], *, zoo: Zoo, diags: Diagnostics
) -> Tuned | None:
    peft_type = str(files.config.get("peft_type"))[:40]
    reader = READERS.get(files.kind) or KINDS.get(peft_type)
    if reader is None:
        diags.report(
            "BC208", f"{files.written} is a fine-tune of the kind {peft_type!r}", at=files.span,
            notes=(f"{peft_type} is not supported: {why_refused(peft_type)}",),
            help="merge it into a full checkpoint with PEFT, if PEFT can; `blockc rule BC208` lists what is served",
        )  # fmt: skip
        return None
    checkpoint = _open_adapter(files, diags=diags)
    if checkpoint is None:
        return None
    adapter = AdapterFiles(
        config=without_absent_classifiers(files.config, parent.path),
        checkpoint=checkpoint,
        parent=parent,
        written=files.written,
        zoo=zoo,
        diags=diags,
        at=files.span,
        model_config=with_classes(
            next(models[name].config for name in files.lineage if models[name].is_full), len(files.labels)
        ),
    )
    try:
        return reader(adapter)
    except SlowPatternError:
        report_slow(files, diags=diags)
        return None


def report_slow(files: ModelFiles, *, diags: Diagnostics) -> None:
    """Refuse patterns that backtrack without end."""
    diags.report(
        "BC207", f"the patterns of {files.written} take more than {SECONDS:g} s to match", at=files.span,
        help="name the modules in a list, or write patterns without repetitions of repetitions",
    )  # fmt: skip


def compare_names(files: ModelFiles, named: str | None, *, diags: Diagnostics) -> None:
    """Warn where an adapter names another base than the spec, or a quantised copy. Its shapes have been found to fit.

    Adapters carry no fingerprint of their base. Of a path on the disk of whoever trained one only the last part says
    anything, and no more of it is repeated.
    """
    if not named:
        return
    source, told = files.base.source, _told(named)
    if _QUANTISED.search(told):
        diags.report(
            "BC210", f"{files.written} was trained on a quantised copy of its base, {told}", at=files.span,
            notes=("here it is put on the full weights, which differ from that copy's by rounding",),
            help="nothing, if its answers are good: this is the usual way to serve such an adapter",
        )  # fmt: skip
        return
    if not isinstance(source, HubSource) or told.lower() in (source.repo.lower(), source.repo.split("/")[-1].lower()):
        return
    diags.report(
        "BC210",
        f"{files.written} was made for {told}, here it is put on {source.repo}",
        at=files.span,
        notes=("its shapes fit, which is all that can be compared",),
        help="make sure that both are the same model",
    )


def _told(named: str) -> str:
    """A repository as it is, also where it was read from the hub's cache; of any other path the last part."""
    if cached := _CACHED.search(named):
        return f"{cached[1]}/{cached[2]}"
    return named if _REPOSITORY.fullmatch(named) else re.split(r"[/\\]", named.rstrip("/\\"))[-1][:80]


def _chain(
    path: ModelPath,
    sides: tuple[Side, ...],
    files: ModelFiles,
    models: Mapping[str, ModelFiles],
    *,
    zoo: Zoo,
    diags: Diagnostics,
    virtual_tokens: tuple[int, ...] = (),
) -> Chain:
    directories = tuple(models[name].directory for name in files.lineage)
    if files.head.kind != "tokens":  # there is no head of tokens that would say how many there are
        heights = [table.place.shape[0] for table in tables(path).values()]
        path = replace(path, vocab_size=min(heights, default=path.vocab_size))
    # The nearest full model's configuration: adapters have none of their own.
    config = next(models[name].config for name in files.lineage if models[name].is_full)
    return Chain(
        path=path,
        sides=sides,
        assets=store_assets(directories, zoo, diags=diags, at=files.span),
        stop_token_ids=stop_token_ids(directories, config, diags=diags, at=files.span),
        virtual_tokens=virtual_tokens,
        labels=files.labels,
        each_token=files.head.kind == "token_classification",
        embedding=files.embedding,
    )


def longest_sequence(files: ModelFiles, traced: TracedModel, *, diags: Diagnostics) -> int:
    """What the spec wants, else the model's own limit. More than that is reported (BC109)."""
    limit, wanted = traced.max_positions, files.base.max_model_len
    if wanted is None:
        return limit if limit is not None else 2048
    if limit is not None and wanted > limit:
        diags.report(
            "BC109",
            f"`max_model_len = {wanted}` of `{files.base.name}` exceeds the {limit} positions of {files.written}",
            at=files.base.span,
            help=f"write `max_model_len = {limit}` or less",
        )
        return limit
    return wanted
