"""The independent oracle: the same model run alone through transformers and PEFT, from its original files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from blockc.architectures import ENCODERS
from blockc.diag import DiagnosticError, Diagnostics
from blockc.fine_tunes import BIAS
from blockc.plan import ExecutionPlan, ModelEntry
from blockc.spec.deployment import HubSource
from blockc.trace import Head
from blockc.tune.adapter_head import class_count, is_for_classes
from blockc.tune.head import MODULES, encoder_head, model_classes, pooled_head
from blockc.tune.source import download
from blockc.verify.bottleneck import add_bottlenecks, is_bottleneck
from blockc.verify.coded import awq_model, decompressed, method_of
from blockc.verify.resize import resize, resized

# PEFT's types that put virtual tokens before a prompt.
_VIRTUAL = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")


class Reference:
    """One app's model, with its fine-tunes, as transformers and PEFT run it. One request at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Float32 logits ``[len(tokens), vocab]``."""
        with torch.inference_mode():
            output: torch.Tensor = self._model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return output[-len(tokens) :].float()  # PEFT answers for virtual tokens as well


class VectorReference:
    """One app's encoder or classifier as transformers runs it, pooled as its files say. One text at a time."""

    def __init__(self, model: Any, head: Head) -> None:
        self._model = model
        self._head = head

    def vector(self, tokens: Sequence[int]) -> torch.Tensor:
        """Float32: an embedding ``[hidden]``, scores ``[classes]``, or of each token ``[len(tokens), classes]``."""
        with torch.inference_mode():
            output = self._model(torch.tensor([list(tokens)]))
        if self._head.kind == "classification":
            return output.logits[0].float()  # type: ignore[no-any-return]
        hidden: torch.Tensor = output.last_hidden_state[0].float()
        pooled = {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[self._head.pooling]
        return torch.nn.functional.normalize(pooled, dim=0) if self._head.normalize else pooled


@contextmanager
def quiet() -> Iterator[None]:
    """What transformers says about a model while it is loaded concerns nobody who asks how it is served."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_files(plan: ExecutionPlan, root: Path) -> None:
    """See that the files of every app's model are there. Raises :class:`DiagnosticError` (BC201)."""
    for name in sorted({step for app in plan.apps for step in _lineage(plan.models, app.model)}):
        if not plan.models[name].hub:
            _directory(plan.models[name], root)


@contextmanager
def reference(plan: ExecutionPlan, name: str, root: Path, dtype: torch.dtype) -> Iterator[Reference]:
    """Load the model ``name`` of the plan; ``root`` is the directory that its paths are relative to.

    Raises :class:`DiagnosticError` (BC201) if its files are not there.
    """
    lineage = _lineage(plan.models, name)
    full = next(index for index, step in enumerate(lineage) if plan.models[step].is_full)
    model = _load_full(plan.models[lineage[full]], root, dtype)
    adapters = lineage[:full][::-1]  # the lowest first
    model = _with_fine_tunes(
        model, [(plan.models[step].kind, _directory(plan.models[step], root)) for step in adapters]
    )
    yield Reference(model.eval())


@contextmanager
def vector_reference(plan: ExecutionPlan, name: str, root: Path, dtype: torch.dtype) -> Iterator[VectorReference]:
    """As :func:`reference`, for a model that yields one vector for a text."""
    from transformers import AutoModel, AutoModelForCausalLM

    lineage = _lineage(plan.models, name)
    full = next(index for index, step in enumerate(lineage) if plan.models[step].is_full)
    directory = _directory(plan.models[lineage[full]], root)
    steps = [(plan.models[step].kind, _directory(plan.models[step], root)) for step in lineage[:full][::-1]]
    chain = plan.models[name].chain
    assert chain is not None, "models of apps have chains"
    if labels := plan.chains[chain].labels:
        model = _classifier(directory, steps, len(labels), dtype, each_token=plan.chains[chain].each_token)
        yield VectorReference(model.eval(), Head(kind="classification"))
        return
    where = [directory, *(own for _, own in steps)]
    pooled = next((place for place in reversed(range(len(where))) if (where[place] / MODULES).is_file()), None)
    config = _config(directory)
    causal = config["model_type"] not in ENCODERS
    head = encoder_head(directory, config) if pooled is None else pooled_head(where[pooled], causal=causal)
    if causal and steps:  # fine-tunes below the one that is pooled were trained on the model for tokens
        assert pooled is not None
        body = _with_fine_tunes(_loaded(AutoModelForCausalLM, directory, dtype), steps[: max(0, pooled - 1)])
        model = (body.merge_and_unload() if hasattr(body, "merge_and_unload") else body).base_model
        model = _with_fine_tunes(model, steps[max(0, pooled - 1) :])
    else:
        model = _with_fine_tunes(_loaded(AutoModel, directory, dtype), steps)
    yield VectorReference(model.eval(), head)


def _classifier(
    directory: Path, steps: Sequence[tuple[str, Path]], classes: int, dtype: torch.dtype, *, each_token: bool
) -> Any:
    """A model with a head for so many classes: its own, or one that a fine-tune brings.

    Fine-tunes below that one are merged into the model as it was for them, whose layers are then put under the head.
    """
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    options = {"num_labels": classes, "ignore_mismatched_sizes": True}
    of_classes = AutoModelForTokenClassification if each_token else AutoModelForSequenceClassification
    model = _loaded(of_classes, directory, dtype, **options)
    config = _config(directory)
    if config["model_type"] not in ENCODERS:
        model.config.get_text_config().pad_token_id = None  # a text by itself has no padding, whatever it ends with
    ending = "ForTokenClassification" if each_token else "ForSequenceClassification"
    own = len(model_classes(config)) if config["architectures"][0].endswith(ending) else None
    heads = [own]
    for _, step in steps:
        heads.append(_classes(step) or heads[-1])
    lower = next(place for place in range(len(heads)) if set(heads[place:]) == {classes}) - 1
    if lower <= 0:  # nothing below the fine-tune that brings the head, if it is not the model's own
        return _with_fine_tunes(model, steps)
    below = heads[lower]
    if below is not None:
        body = _classifier(directory, steps[:lower], below, dtype, each_token=each_token)
    else:
        loader = AutoModel if config["model_type"] in ENCODERS else AutoModelForCausalLM
        body = _with_fine_tunes(_loaded(loader, directory, dtype), steps[:lower])
    body = body.merge_and_unload() if hasattr(body, "merge_and_unload") else body
    setattr(model, model.base_model_prefix, body.base_model)
    return _with_fine_tunes(model, steps[lower:])


def _classes(directory: Path) -> int | None:
    """For how many classes an adapter brings a head; None if it brings none."""
    path = directory / "adapter_config.json"
    return class_count(directory) if path.is_file() and is_for_classes(json.loads(path.read_text())) else None


def _config(directory: Path) -> Any:
    return json.loads((directory / "config.json").read_text())


def _lineage(models: Mapping[str, ModelEntry], name: str) -> list[str]:
    found = [name]
    while (parent := models[found[-1]].parent) is not None:
        found.append(parent)
    return found


def _load_full(entry: ModelEntry, root: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return _loaded(AutoModelForCausalLM, _directory(entry, root), dtype)


def _loaded(loader: Any, directory: Path, dtype: torch.dtype, **more: Any) -> Any:
    """With fused attention, or without where the architecture has none (softcaps, sinks)."""
    options = {"dtype": dtype, "use_safetensors": True, **more}
    method = method_of(_config(directory))
    if method == "awq":
        return awq_model(loader, directory, dtype, attn_implementation="sdpa", **more)
    if method == "compressed-tensors":
        options["quantization_config"] = decompressed()
    try:
        return loader.from_pretrained(directory, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return loader.from_pretrained(directory, attn_implementation="eager", **options)


def _with_fine_tunes(model: Any, steps: Sequence[tuple[str, Path]]) -> Any:
    """Adapters as PEFT applies them; vectors alone are put in the place of the model's own."""
    while steps:
        if steps[0][0] == BIAS:
            vectors = load_file(steps[0][1] / "model.safetensors")
            unknown = model.load_state_dict(vectors, strict=False).unexpected_keys
            assert not unknown, f"the model has no {unknown}"
            steps = steps[1:]
            continue
        upper = next((place for place, (kind, _) in enumerate(steps) if kind == BIAS), len(steps))
        model = _with_adapters(model, [directory for _, directory in steps[:upper]])
        if upper < len(steps):
            model = model.merge_and_unload()
        steps = steps[upper:]
    return model


def _with_adapters(model: Any, directories: Sequence[Path]) -> Any:
    """A stack of adapters, the lowest first. Matrices keep the model's dtype.

    Plain LoRAs are active at once, and PEFT adds them up; of other stacks, and of classifiers, all but the highest are
    merged by PEFT.
    What PEFT cannot merge acts on nothing that the others change: bottlenecks, which are ours, come first, and whoever
    has virtual tokens last. Before an adapter with another vocabulary the model is resized, as PEFT wants it.
    """
    for directory in filter(is_bottleneck, directories):
        add_bottlenecks(model, directory)
    directories = [directory for directory in directories if not is_bottleneck(directory)]
    if not directories:
        return model
    try:
        from peft import PeftModel
    except ImportError as error:
        diags = Diagnostics()
        diags.report(
            "BC905", "verifying adapters needs PEFT", help="install it: pip install 'blockc[verify]'",
        )  # fmt: skip
        raise DiagnosticError(diags) from error
    kinds = {directory: json.loads((directory / "adapter_config.json").read_text()) for directory in directories}
    directories = sorted(directories, key=lambda directory: kinds[directory].get("peft_type") in _VIRTUAL)
    configs = [kinds[directory] for directory in directories]
    together = all(
        config.get("peft_type") == "LORA" and not config.get("use_dora") and not is_for_classes(config)
        for config in configs
    )
    if not together or any(resized(model, directory) for directory in directories):
        for lower in directories[:-1]:
            resize(model, lower)
            lowered = PeftModel.from_pretrained(
                model, lower, config=_config_for(model, lower), autocast_adapter_dtype=False
            )
            model = lowered.to(model.dtype).merge_and_unload()
        directories = directories[-1:]
    resize(model, directories[0])
    names = [f"adapter{index}" for index in range(len(directories))]
    tuned = PeftModel.from_pretrained(
        model,
        directories[0],
        adapter_name=names[0],
        config=_config_for(model, directories[0]),
        autocast_adapter_dtype=False,
    )
    for name, directory in zip(names[1:], directories[1:], strict=True):
        tuned.load_adapter(directory, adapter_name=name, autocast_adapter_dtype=False)
    if configs[-1].get("peft_type") in _VIRTUAL:
        return tuned
    tuned.base_model.set_adapter(names)
    return tuned.to(model.dtype)


def _config_for(model: Any, directory: Path) -> Any:
    """An adapter's configuration. One for generation may stand on a classifier, which PEFT would ask to generate."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(directory)
    if config.task_type == "CAUSAL_LM" and not hasattr(model, "prepare_inputs_for_generation"):
        config.task_type = None
    return config


def _directory(entry: ModelEntry, root: Path) -> Path:
    assert entry.source is not None, "plans with assumed models are refused before"
    if entry.hub:
        diags = Diagnostics()
        found = download(HubSource(repo=entry.source, revision=entry.revision), diags=diags)
        if found is None:
            raise DiagnosticError(diags)
        return found
    directory = (root / Path(entry.source).expanduser()).resolve()
    if not directory.is_dir():
        diags = Diagnostics()
        diags.report(
            "BC201",
            f"the plan's model {entry.source} is not in {root}",
            notes=("paths in a plan are relative to the directory of its spec",),
            help="name that directory with `--models DIR`",
        )
        raise DiagnosticError(diags)
    return directory
