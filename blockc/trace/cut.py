"""Cut a normalised graph into blocks, by dataflow alone.

A cut stands after a value that everything later depends on and through which everything earlier is seen (it alone is
alive), and at which branches start or join: the residual stream between sublayers. Chains of ops without a branch
are never cut. Module names play no part. What depends on positions alone and on no parameter is the prelude.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from blockc.trace import nodes
from blockc.trace.attention import UntraceableError
from blockc.trace.capture import Capture
from blockc.trace.nodes import aten, is_call, shape_of

_VIEWS = (aten.reshape.default, aten.unsqueeze.default, aten.to.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """``prelude`` and each of ``blocks`` are nodes in execution order; ``outputs[i]`` leaves block i."""

    prelude: tuple[fx.Node, ...]
    contexts: tuple[fx.Node, ...]  # values of the prelude that blocks read
    blocks: tuple[tuple[fx.Node, ...], ...]
    outputs: tuple[fx.Node, ...]


def cut(capture: Capture, *, after_layers: bool = False) -> Cuts:
    """Partition all ops. Raises :class:`UntraceableError` if the model has no such cuts.

    ``after_layers``: also where the last layer ends, which is no branch where a layer ends in a norm and the head reads
    every token. A head that pools is cut off by that.
    """
    ops = [node for node in capture.graph.nodes if node.op == "call_function"]
    tokens = capture.placeholder("tokens")
    parameters = {
        node
        for node in capture.graph.nodes
        if node.op == "placeholder" and node.name in capture.names and capture.names[node.name] not in capture.buffers
    }
    on_tokens = _reached_from({tokens}, ops)
    on_parameters = _reached_from(parameters, ops)
    stream = [node for node in ops if node in on_tokens]
    prelude = tuple(node for node in ops if node not in on_tokens and node not in on_parameters)
    inside = set(prelude)
    contexts = tuple(node for node in prelude if any(user not in inside for user in node.users))
    # Computed from positions and parameters: only the first block takes positions, so it ends after their readers.
    embedded = (_reached_from({capture.placeholder("positions")}, ops) & on_parameters) - on_tokens
    readers = [index for index, node in enumerate(stream) if not embedded.isdisjoint(node.all_input_nodes)]
    layers = {name for name, full in capture.names.items() if full.startswith(f"{capture.layers.path}.")}
    of_layers = [index for index, node in enumerate(stream) if any(a.name in layers for a in node.all_input_nodes)]
    last = max(of_layers, default=-1) if after_layers else -1
    bounds = _boundaries(stream, first=max(readers, default=0), last_of_layers=last)
    block_of = {node: index for index, run in enumerate(_runs(stream, bounds)) for node in run}
    for node in reversed(ops):  # computed from parameters alone: goes to whichever block reads it
        if node not in block_of and node not in inside:
            reading = {block_of[user] for user in node.users}
            if len(reading) != 1:
                raise UntraceableError("a value of parameters alone that several blocks read")
            block_of[node] = reading.pop()
    blocks = tuple(tuple(node for node in ops if block_of.get(node) == index) for index in range(len(bounds)))
    if len(blocks) < 3:
        raise UntraceableError("no single stream of hidden states runs through its layers")
    return Cuts(
        prelude=prelude,
        contexts=contexts,
        blocks=blocks,
        outputs=tuple(stream[bound] for bound in bounds),
    )


def _reached_from(sources: set[fx.Node], ops: list[fx.Node]) -> set[fx.Node]:
    reached = set(sources)
    for node in ops:
        if any(argument in reached for argument in node.all_input_nodes):
            reached.add(node)
    return reached


def _boundaries(stream: list[fx.Node], *, first: int, last_of_layers: int) -> list[int]:
    """Indices into ``stream``, from ``first`` on, after which a block ends; the last op is always one."""
    index_of = {node: index for index, node in enumerate(stream)}
    end = len(stream)
    last_use = [
        max((index_of.get(user, end) for user in node.users), default=index) for index, node in enumerate(stream)
    ]
    bounds: list[int] = []
    furthest = -1  # last use of anything before the current node
    pooled = False  # what follows is the head, one piece with what precedes it
    for index, node in enumerate(stream):
        alone = furthest <= index
        forks = sum(user in index_of for user in node.users) > 1
        joins = sum(argument in index_of for argument in node.all_input_nodes) > 1
        pooled = pooled or node.target is nodes.pool
        ends = forks or joins or index == last_of_layers or any(user.target is nodes.pool for user in node.users)
        if index == end - 1 or (alone and ends and not pooled and index >= first):
            bound = _past_reshapes(stream, index)
            start = bounds[-1] + 1 if bounds else 0
            if any(not is_call(op, *_VIEWS) for op in stream[start : bound + 1]):
                bounds.append(bound)
        furthest = max(furthest, last_use[index])
    return bounds


def _past_reshapes(stream: list[fx.Node], index: int) -> int:
    """Hidden states go from block to block as ``[1,T,F]``: models that fold them unfold them before the cut."""
    while (
        len(shape_of(stream[index])) != 3
        and len(stream[index].users) == 1
        and index + 1 < len(stream)
        and is_call(stream[index + 1], aten.reshape.default)
        and stream[index + 1].args[0] is stream[index]
    ):
        index += 1
    return index


def _runs(stream: list[fx.Node], bounds: list[int]) -> list[list[fx.Node]]:
    starts = [0, *(bound + 1 for bound in bounds[:-1])]
    return [stream[start : bound + 1] for start, bound in zip(starts, bounds, strict=True)]
