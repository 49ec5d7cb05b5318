"""Configuration -> one fx graph of ATen ops over the tokens of a whole step, captured on the ``meta`` device.

In: a transformers configuration. Out: the graph with its placeholders named after the model's parameters. No weight
is ever in memory. ``T`` is symbolic; positions are an input of their own, so only attention knows where a request
ends.
"""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.config
from torch import fx, nn

from blockc.trace import attention
from blockc.trace.attention import UntraceableError
from blockc.trace.layers import LayerPlan, find_layers, keep_representatives
from blockc.trace.model import Head

# Any small number that no size of a model is likely to equal: a size that turns out equal to it would still be
# distinguished, because the dimension is symbolic.
_EXAMPLE_TOKENS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """``names`` maps placeholders to full parameter or buffer names of the model."""

    graph: fx.Graph
    names: dict[str, str]
    buffers: frozenset[str]
    model: nn.Module
    layers: LayerPlan

    def placeholder(self, name: str) -> fx.Node:
        """An input of the graph."""
        found: fx.Node = next(node for node in self.graph.nodes if node.op == "placeholder" and node.name == name)
        return found


class _TokensToLogits(nn.Module):
    """The calling convention of a step: flat tokens with their positions, no cache, no mask."""

    def __init__(self, model: nn.Module, head: Head) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        given = {"input_ids": tokens, "position_ids": positions, "use_cache": False, "return_dict": True}
        if self.head.kind == "embedding":  # of every token: whoever runs a step selects the last ones
            inner: Any = self.model.base_model
            hidden: torch.Tensor = inner(**given).last_hidden_state
            return _of_length_1(hidden) if self.head.normalize else hidden
        logits: torch.Tensor = self.model(**given).logits
        return logits


class _TokensToVector(nn.Module):
    """The calling convention of models that read whole texts. In the graph the step is one text."""

    def __init__(self, model: nn.Module, head: Head) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.first_position = _first_position(model)
        self.has_token_types = "token_type_ids" in inspect.signature(model.forward).parameters

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        types = {"token_type_ids": torch.zeros_like(tokens)} if self.has_token_types else {}
        positions = positions + self.first_position if self.first_position else positions
        output = self.model(input_ids=tokens, position_ids=positions, return_dict=True, **types)
        if self.head.has_classes:
            scores: torch.Tensor = output.logits
            return scores
        hidden: torch.Tensor = output.last_hidden_state
        vector = hidden.mean(1) if self.head.pooling == "mean" else hidden[:, 0 if self.head.pooling == "first" else -1]
        return _of_length_1(vector) if self.head.normalize else vector


def _of_length_1(vector: torch.Tensor) -> torch.Tensor:
    """As torch.nn.functional.normalize has it."""
    return vector / vector.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)


def _first_position(model: nn.Module) -> int:
    """Where positions begin in models that count them from the padding token's id (RoBERTa and its descendants)."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            padding: Any = module.padding_idx
            return int(padding) + 1
    return 0


def build_meta_model(config: Any, dtype: torch.dtype, head: Head) -> nn.Module:
    """The architecture of ``config`` on the meta device. Raises :class:`UntraceableError`."""
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    classes = {
        "tokens": AutoModelForCausalLM,
        # A decoder's is taken from the model for tokens, whose blocks it shares then, names and all.
        "embedding": AutoModelForCausalLM if head.causal else AutoModel,
        "classification": AutoModelForSequenceClassification,
        "token_classification": AutoModelForTokenClassification,
    }
    attention.register()
    config = copy.deepcopy(config)
    try:
        if head.causal:
            config.get_text_config().pad_token_id = None  # a text by itself has no padding, whatever it ends with
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = (
                classes[head.kind].from_config(config, dtype=dtype, attn_implementation=attention.NAME).eval()
            )
            if model._can_set_experts_implementation():  # type: ignore[operator]
                model.set_experts_implementation(attention.NAME)  # type: ignore[operator]
            _keep_wide(model, dtype)
            if head.reads_whole_texts:
                for module in model.modules():
                    setattr(module, attention.ENCODES, True)
    except KeyError as error:
        if error.args == (attention.NAME,):
            raise UntraceableError("its attention does not pass transformers' attention interface") from error
        raise UntraceableError(f"transformers cannot build it: {_first_line(error)}") from error
    except Exception as error:
        raise UntraceableError(f"transformers cannot build it: {_first_line(error)}") from error
    return model


def capture(model: nn.Module, head: Head, *, every_layer: bool = False) -> Capture:
    """Export ``model`` (which is shortened and untied in place). Raises :class:`UntraceableError`."""
    layers = find_layers(model)
    if layers is None:
        raise UntraceableError("it has no list of layers")
    if every_layer:
        layers = layers.every_layer()
    keep_representatives(model, layers)
    _untie(model)
    tokens = torch.zeros(1, _EXAMPLE_TOKENS, dtype=torch.int64, device="meta")
    dim = torch.export.Dim("T", min=2, max=1 << 20)
    loggers = [logging.getLogger(name) for name in ("torch.export", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        # Without gradients, `torch.no_grad` inside a model leaves no region in the graph.
        with torch.no_grad(), _quick_export(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _TokensToVector(model, head) if head.reads_whole_texts else _TokensToLogits(model, head),
                (tokens, tokens.clone()),
                dynamic_shapes=({1: dim}, {1: dim}),
                strict=False,
            )
    except UntraceableError:
        raise
    except Exception as error:
        if "Constraints violated" in str(error):
            raise UntraceableError("its code fixes how many tokens there are") from error
        raise UntraceableError(f"torch.export: {_first_line(error)}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    signature = program.graph_signature
    parameters = {key: name.removeprefix("model.") for key, name in signature.inputs_to_parameters.items()}
    computed = set(signature.non_persistent_buffers)
    buffers = {
        key: name.removeprefix("model.") for key, name in signature.inputs_to_buffers.items() if name in computed
    }
    # Buffers of the checkpoint (the bias of a router) are parameters here: they are no function of the configuration.
    parameters |= {
        key: name.removeprefix("model.") for key, name in signature.inputs_to_buffers.items() if name not in computed
    }
    if program.constants.keys() - set(signature.inputs_to_buffers.values()):
        raise UntraceableError("its graph holds constants that its configuration does not explain")
    return Capture(
        graph=program.graph,
        names=parameters | buffers,
        buffers=frozenset(buffers.values()),
        model=model,
        layers=layers,
    )


@contextmanager
def _quick_export() -> Iterator[None]:
    """Without what torch does beside the graph.

    What it remembers of fake tensors takes longer to look up, with sizes that are symbols, than to find out again: a
    third of the time. Graphs become Python code after every change, which nobody runs: a quarter of the rest. Which
    line of a model an op comes from nobody asks: a tenth.
    """
    settings: Any = fx.config
    module: Any = fx.GraphModule
    before, recompile = settings.do_not_emit_stack_traces, module.recompile
    settings.do_not_emit_stack_traces = True
    module.recompile = _no_code
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        settings.do_not_emit_stack_traces = before
        module.recompile = recompile


def _no_code(module: fx.GraphModule) -> None:
    """In the place of :meth:`fx.GraphModule.recompile`."""


def computed_buffers(model: nn.Module, names: frozenset[str]) -> dict[str, torch.Tensor]:
    """Values of buffers that a model computes from its configuration (rotary frequencies, scales), by full name.

    On the meta device they have none. ``_init_weights`` is what gives transformers' own loading theirs.
    """
    values: dict[str, torch.Tensor] = {}
    for name in sorted(names):
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        twin = copy.copy(owner)
        twin._buffers = {
            key: None if buffer is None else torch.zeros(buffer.shape, dtype=buffer.dtype)
            for key, buffer in owner._buffers.items()
        }
        unset = owner.get_buffer(leaf)
        blank = torch.nan if unset.is_floating_point() else torch.iinfo(unset.dtype).min
        twin._buffers[leaf] = torch.full(unset.shape, blank, dtype=unset.dtype)
        try:
            with torch.no_grad():
                model._init_weights(twin)  # type: ignore[operator]
        except Exception as error:
            raise UntraceableError(f"cannot compute the buffer {name}: {_first_line(error)}") from error
        value = twin.get_buffer(leaf)
        if not torch.isfinite(value).all() or (value == blank).any():
            raise UntraceableError(f"nothing says what the buffer {name} holds")
        values[name] = value
    return values


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by full name: what a checkpoint holds. Tied ones under each of their names."""
    computed = {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    stored = dict(model.named_parameters(remove_duplicate=False))
    buffers = {name: buffer for name, buffer in model.named_buffers() if name not in computed}
    return stored | buffers


def _keep_wide(model: Any, dtype: torch.dtype) -> None:
    """Tensors that transformers keeps in float32 whatever the model's dtype, as its loading does."""
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return
    pattern, glob_of, _ = build_glob_alternation(list(plan))
    for name, tensor in stored_tensors(model).items():
        match = pattern.search(name)
        if match is None or not tensor.is_floating_point():
            continue
        path, _, leaf = name.rpartition(".")
        wide = tensor.detach().to(plan[glob_of[match.lastgroup]])
        owner = model.get_submodule(path)
        setattr(owner, leaf, nn.Parameter(wide, requires_grad=False) if leaf in owner._parameters else wide)


def _untie(model: nn.Module) -> None:
    """Give tied parameters names of their own: a checkpoint may hold both, different, and then they are not tied."""
    for target in dict(getattr(model, "all_tied_weights_keys", None) or {}):
        path, _, leaf = target.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, leaf, nn.Parameter(torch.empty_like(getattr(owner, leaf)), requires_grad=False))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
