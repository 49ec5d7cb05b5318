"""Chains without weights: from configurations alone, for plans that are simulated and never served.

In: files and traced structures, as for :func:`blockc.tune.tune`. Out: a chain per base and fine-tune whose tensors have
names and shapes instead of content. Invariant: a tensor of a base is one tensor whatever fine-tune refers to it; what
a fine-tune may have changed is another. Equal content under two names is not seen, so a plan shares at most less than
the weights would let it. A full fine-tune's folder is taken to change everything: only an `assume` says which layers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blockc.diag import Diagnostics
from blockc.graph import Chain, ModelPath
from blockc.ir import CACHE_DTYPE_CODE, Side, TensorRef, canonical_json, low_rank
from blockc.spec.deployment import Assumption, HubSource, LocalSource
from blockc.trace import Source, TracedBlock, TracedModel
from blockc.tune.adapter_config import LoraSettings, read_lora_settings
from blockc.tune.assets import stop_token_ids
from blockc.tune.bind import bind
from blockc.tune.draft import Located, linears
from blockc.tune.full import tensor_ref
from blockc.tune.kinds import KINDS
from blockc.tune.models import ModelFiles
from blockc.tune.patterns import SlowPatternError
from blockc.tune.stack import stack_sides
from blockc.tune.traced import parameter_of, parameter_shape
from blockc.tune.tune import compare_names, longest_sequence, report_slow

_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<index>\d+)\.")
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    """What every LoRA of one configuration puts at one linear of one path."""

    module: str
    target: Located
    rank: int
    scale: float


_Terms = dict[tuple[str, str], tuple[_Term, ...]]  # (path, configuration) -> terms: most adapters of a fleet are alike


def assume(
    models: Mapping[str, ModelFiles], traced: Mapping[str, TracedModel], *, diags: Diagnostics
) -> dict[str, Chain]:
    """Chains by model name. ``models`` lists parents before children; ``traced`` has every full model."""
    chains: dict[str, Chain] = {}
    known: _Terms = {}
    for name, files in models.items():
        parent = chains.get(files.lineage[1]) if len(files.lineage) > 1 else None
        if not files.is_full:
            chain = _lora_chain(files, parent, models, known, diags=diags) if parent is not None else None
        else:
            chain = _full_chain(files, traced.get(name), models, diags=diags)
        if chain is not None:
            chains[name] = chain
    return chains


def _full_chain(
    files: ModelFiles, traced: TracedModel | None, models: Mapping[str, ModelFiles], *, diags: Diagnostics
) -> Chain | None:
    if traced is None or not _layers_exist(files, traced, diags=diags):
        return None
    path = bind(
        traced,
        _tensors_of(files, traced, models),
        max_model_len=longest_sequence(files, traced, diags=diags),
        kv_dtype=CACHE_DTYPE_CODE[files.base.kv_cache_dtype],
    )
    return _chain(path, (), files, models, diags=diags)


def _tensors_of(
    files: ModelFiles, traced: TracedModel, models: Mapping[str, ModelFiles]
) -> Callable[[TracedBlock], Mapping[str, TensorRef]]:
    origins = _Origins(files=files, models=models, stack=_stack(traced)[0])

    def tensor(block: TracedBlock, param: str, source: Source) -> TensorRef:
        if source.name in traced.buffers:  # follows from the configuration, values and all
            return tensor_ref(traced.buffers[source.name])[0]
        name, dtype = parameter_of(traced, source), dict(block.structure.params)[param].dtype
        return _assumed(origins.of(name), f"{name} {source.transform}", dtype, parameter_shape(block, param))

    def tensors(block: TracedBlock) -> Mapping[str, TensorRef]:
        return {param: tensor(block, param, source) for param, source in block.sources.items()}

    return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origins:
    """Whose a full model's parameter is: its own, or of the model that it derives from."""

    files: ModelFiles
    models: Mapping[str, ModelFiles]
    stack: str

    def of(self, parameter: str) -> str:
        """Follow the lineage down to the model that last changed the parameter."""
        lineage = (self.models[name] for name in self.files.lineage)
        return _origin(next(files for files in lineage if self._owns(files, parameter)))

    def _owns(self, files: ModelFiles, parameter: str) -> bool:
        if not isinstance(files.source, Assumption) or files.source.changed_layers is None:
            return True
        first, last = files.source.changed_layers
        match = _LAYER.match(parameter)
        return match is not None and match["stack"] == self.stack and first <= int(match["index"]) <= last


def _layers_exist(files: ModelFiles, traced: TracedModel, *, diags: Diagnostics) -> bool:
    changed = files.source.changed_layers if isinstance(files.source, Assumption) else None
    count = _stack(traced)[1]
    if changed is None or changed[1] < count:
        return True
    diags.report(
        "BC109",
        f"`{files.name}` is assumed to change layers {changed[0]} to {changed[1]}, `{files.lineage[1]}` has {count}",
        at=files.span,
        help=f"layers count from 0: write `changed_layers = {min(changed[0], count - 1)}..{count - 1}`",
    )
    return False


def _stack(traced: TracedModel) -> tuple[str, int]:
    """The list of layers and their number: what most parameters lie in, as for tracing."""
    indices: dict[str, set[int]] = {}
    for block in traced.blocks:
        for source in block.sources.values():
            if match := _LAYER.match(source.name):
                indices.setdefault(match["stack"], set()).add(int(match["index"]))
    stack = max(indices, key=lambda key: len(indices[key]), default="")
    return stack, len(indices.get(stack, ()))


def _lora_chain(
    files: ModelFiles, parent: Chain, models: Mapping[str, ModelFiles], known: _Terms, *, diags: Diagnostics
) -> Chain | None:
    key = (parent.path.digest, canonical_json(dict(files.config)))
    try:
        terms = known.get(key) or _terms(files, parent.path, diags=diags)
    except SlowPatternError:
        report_slow(files, diags=diags)
        return None
    if terms is None:
        return None
    known[key] = terms
    base_name = files.config.get("base_model_name_or_path")
    compare_names(files, base_name if isinstance(base_name, str) else None, diags=diags)
    origin, dtype = _origin(files), parent.path.dtype
    sides = tuple(
        Side(
            site=term.target.site,
            terms=(
                low_rank(
                    _assumed(origin, f"{term.module} A", dtype, (term.rank, term.target.in_features)),
                    _assumed(origin, f"{term.module} B", dtype, (term.target.out_features, term.rank)),
                    term.scale,
                ),
            ),
        )
        for term in terms
    )
    return _chain(parent.path, stack_sides(parent.sides, sides), files, models, diags=diags)


def _terms(files: ModelFiles, path: ModelPath, *, diags: Diagnostics) -> tuple[_Term, ...] | None:
    """The linears that a configuration targets, by the rules that its tensors would have to follow."""
    kind = str(files.config.get("peft_type"))[:40]
    if kind in KINDS and kind != "LORA":
        diags.report(
            "BC208", f"{files.written} is a fine-tune of the kind {kind!r}, which is planned for with its weights only",
            at=files.span, notes=("without weights there are plans for LoRA and for full fine-tunes",),
            help="compile with its weights: leave `--target sim` out",
        )  # fmt: skip
        return None
    settings = read_lora_settings(files.config, written=files.written, diags=diags, at=files.span)
    if settings is None or not _follows(files, settings, diags=diags):
        return None
    targets = linears(path)
    if isinstance(files.source, Assumption) and not _all_exist(files, settings, targets, diags=diags):
        return None
    wanted = [module for module in targets if settings.targets(module)]
    if not wanted:
        diags.report(
            "BC211",
            f"the configuration of {files.written} targets no linear of its base",
            at=files.span,
            notes=(f"target_modules = {settings.targeted}",),
            help="check which base the adapter was made for",
        )
        return None
    return tuple(
        _Term(
            module=module, target=targets[module], rank=settings.rank_of(module), scale=settings.scale_of(module)
        )
        for module in sorted(wanted, key=lambda module: targets[module].site)
    )  # fmt: skip


def _follows(files: ModelFiles, settings: LoraSettings, *, diags: Diagnostics) -> bool:
    """Whether all that the adapter changes follows from its configuration."""
    beside = {
        "bias": settings.bias != "none", "lora_bias": settings.lora_bias, "use_dora": settings.dora,
        "modules_to_save": settings.modules_to_save, "trainable_token_indices": settings.trainable_tokens,
    }  # fmt: skip
    for field, given in beside.items():
        if given:
            diags.report(
                "BC207", f"`{field}` of {files.written} cannot be planned for from its configuration alone",
                at=files.span, help="compile with its weights: leave `--target sim` out",
            )  # fmt: skip
    return not any(beside.values())


def _all_exist(
    files: ModelFiles, settings: LoraSettings, targets: Mapping[str, Located], *, diags: Diagnostics
) -> bool:
    """Whether each target that a spec writes is a linear: a misspelt one would make the plan too small."""
    if isinstance(settings.targeted.names, str):
        return True  # all linears
    unknown = [
        name
        for name in sorted(settings.targeted.names)
        if not any(module == name or module.endswith(f".{name}") for module in targets)
    ]
    for name in unknown:
        leaves = sorted({module.rsplit(".", 1)[-1] for module in targets})
        diags.report(
            "BC101",
            f"`{name[:60]}` of the targets of `{files.name}` is no linear of `{files.lineage[-1]}`",
            at=files.span,
            help=f"it has {', '.join(leaves[:_SHOWN])}",
        )
    return not unknown


def _chain(
    path: ModelPath, sides: tuple[Side, ...], files: ModelFiles, models: Mapping[str, ModelFiles], *, diags: Diagnostics
) -> Chain:
    """Without assets: nobody will tokenise."""
    directories = tuple(models[name].directory for name in files.lineage)
    config = next(models[name].config for name in files.lineage if models[name].is_full)
    stop = stop_token_ids(directories, config, diags=diags, at=files.span)
    return Chain(
        path=path, sides=sides, assets={}, stop_token_ids=stop, labels=files.labels,
        each_token=files.head.kind == "token_classification", embedding=files.embedding,
    )  # fmt: skip


def _origin(files: ModelFiles) -> str:
    """Who a tensor belongs to when its content is not known: a source; an assumed fine-tune has only its name."""
    match files.source:
        case LocalSource(written=written):
            return canonical_json(["folder", written])
        case HubSource(repo=repo, revision=revision):
            return canonical_json(["hub", repo, revision])
        case _:
            return canonical_json(["assumed", files.name])


def _assumed(origin: str, name: str, dtype: str, shape: tuple[int, ...]) -> TensorRef:
    sizes = ",".join(map(str, shape))
    digest = hashlib.sha256(f"assumed tensor v1 {dtype} {sizes}\n{origin}\n{name}".encode()).hexdigest()
    return TensorRef(digest=digest, dtype=dtype, shape=shape)
