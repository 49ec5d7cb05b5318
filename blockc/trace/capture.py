"""Configuration -> one fx graph of ATen ops over the tokens of a whole step, captured on the ``meta`` device.

In: a transformers configuration. Out: the graph with its placeholders named after the model's parameters. No weight
is ever in memory. ``T`` is symbolic; positions are an input of their own, so only attention knows where a request
ends.
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from blockc.trace import attention
from blockc.trace.attention import UntraceableError
from blockc.trace.layers import LayerPlan, find_layers, keep_representatives

# Any small number that no size of a model is likely to equal: a size that turns out equal to it would still be
# distinguished, because the dimension is symbolic.
_EXAMPLE_TOKENS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """``names`` maps placeholders to full parameter or buffer names of the (shortened) model."""

    graph: fx.Graph
    names: dict[str, str]
    buffers: frozenset[str]
    model: nn.Module
    layers: LayerPlan


class _TokensToLogits(nn.Module):
    """The calling convention of a step: flat tokens with their positions, no cache, no mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(
            input_ids=tokens, position_ids=positions, use_cache=False, return_dict=True
        ).logits
        return logits


def build_meta_model(config: Any, dtype: torch.dtype) -> nn.Module:
    """The architecture of ``config`` on the meta device. Raises :class:`UntraceableError`."""
    from transformers import AutoModelForCausalLM

    attention.register()
    config = copy.deepcopy(config)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=attention.NAME
            ).eval()
    except KeyError as error:
        if error.args == (attention.NAME,):
            raise UntraceableError("its attention does not pass transformers' attention interface") from error
        raise UntraceableError(f"transformers cannot build it: {_first_line(error)}") from error
    except Exception as error:
        raise UntraceableError(f"transformers cannot build it: {_first_line(error)}") from error
    return model


def capture(model: nn.Module, *, every_layer: bool = False) -> Capture:
    """Export ``model`` (which is shortened and untied in place). Raises :class:`UntraceableError`."""
    layers = find_layers(model)
    if layers is None:
        raise UntraceableError("it has no list of layers")
    if every_layer:
        count = len(layers.kind_of)
        layers = LayerPlan(path=layers.path, representatives=tuple(range(count)), kind_of=tuple(range(count)))
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
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _TokensToLogits(model),
                (tokens, tokens.clone()),
                dynamic_shapes=({1: dim}, {1: dim}),
                strict=False,
            )
    except UntraceableError:
        raise
    except Exception as error:
        raise UntraceableError(f"torch.export: {_first_line(error)}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    signature = program.graph_signature
    parameters = {key: name.removeprefix("model.") for key, name in signature.inputs_to_parameters.items()}
    buffers = {key: name.removeprefix("model.") for key, name in signature.inputs_to_buffers.items()}
    if program.constants.keys() - set(signature.inputs_to_buffers.values()):
        raise UntraceableError("its graph holds constants that its configuration does not explain")
    return Capture(
        graph=program.graph,
        names=parameters | buffers,
        buffers=frozenset(buffers.values()),
        model=model,
        layers=layers,
    )


def computed_buffers(model: nn.Module, names: frozenset[str]) -> dict[str, torch.Tensor]:
    """Values of buffers that a model computes from its configuration (rotary frequencies), by full name.

    The module that owns the buffer is built once more, for real: on the meta device it has no values.
    """
    values: dict[str, torch.Tensor] = {}
    for name in sorted(names):
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf not in owner._non_persistent_buffers_set:
            raise UntraceableError(f"the buffer {name} is part of its checkpoint")
        try:
            with torch.device("cpu"):
                rebuilt = type(owner)(config=model.config)
        except Exception as error:
            raise UntraceableError(f"cannot compute the buffer {name}: {_first_line(error)}") from error
        values[name] = rebuilt.get_buffer(leaf).detach().clone()
    return values


def _untie(model: nn.Module) -> None:
    """Give tied parameters names of their own: a checkpoint may hold both, different, and then they are not tied."""
    for target in dict(getattr(model, "all_tied_weights_keys", None) or {}):
        path, _, leaf = target.rpartition(".")
        owner = model.get_submodule(path)
        setattr(owner, leaf, nn.Parameter(torch.empty_like(getattr(owner, leaf)), requires_grad=False))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
