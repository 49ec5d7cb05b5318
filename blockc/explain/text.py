"""Explanations as text, to be read in a terminal.

In: the data of `why` and `pair`. Out: lines. Invariant: pure, and nothing that a terminal obeys leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from blockc.explain.difference import Difference
from blockc.explain.evidence import Weighed
from blockc.explain.pair import Pair, PairKv
from blockc.explain.why import Bound, Elsewhere, KvFacts, Sibling, Why
from blockc.render.units import format_bytes, printable

_SHOWN = 6


def why_text(why: Why) -> str:
    """All sections."""
    sections = (_head(why), _sharing(why), _evidence(why), _integers(why), _segment(why), _adapter(why), _cache(why))
    return "\n".join(printable(line) for section in sections for line in section) + "\n"


def pair_text(pair: Pair) -> str:
    """All sections."""
    sections = (_pair_head(pair), _pair_weights(pair), _pair_kv(pair))
    return "\n".join(printable(line) for section in sections for line in section) + "\n"


def _head(why: Why) -> Iterator[str]:
    yield f"{why.app} ({' : '.join(why.lineage)}), block {why.block} of 0-{why.of - 1}: {why.name}"
    yield (
        f"  digest {why.digest[:16]}, structure {why.structure[:16]}, "
        f"{format_bytes(why.nbytes)} in {_count(len(why.parameters), 'tensor')}"
    )
    if why.also_at:
        yield f"  the same block stands at {_list(map(str, why.also_at))} of this chain too, stored once"


def _sharing(why: Why) -> Iterator[str]:
    if why.passes:
        yield f"SHARED  one launch serves this app and {_list(why.passes)}"
    elif why.elsewhere:
        yield "SHARED  its weights only: no other app passes it in the same launch"
    else:
        yield "PRIVATE  no other app has this block"
    for other in why.elsewhere:
        yield from _apart(other)
    if why.sibling is not None and (why.sibling.derives or why.sibling.differences):
        yield from _nearest(why.sibling)


def _evidence(why: Why) -> Iterator[str]:
    kept = why.kept
    if kept is None:
        return
    yield (
        f"KEPT  on the blocks of `{kept.base}`, verdict {kept.verdict}: {format_bytes(kept.nbytes)} in place of "
        f"{format_bytes(kept.own_bytes)}"
        + (f", at most {kept.lost:.1%} of a tensor's change lost" if kept.lost else "")
    )
    if kept.agreement:
        yield _agreement("its original", kept.agreement)
    if kept.is_replaced:
        yield f"  this block is `{kept.base}`'s own in place of the fine-tune's"
    for name, codec, lost, nbytes, own_bytes in kept.tensors:
        if name:
            loss = f", {lost:.1%} of its change lost" if lost else ", exact"
            yield f"    {name}  {codec}: {format_bytes(nbytes)} in place of {format_bytes(own_bytes)}{loss}"


def _integers(why: Why) -> Iterator[str]:
    found = why.integers
    if found is None:
        return
    group = "each row" if found.group is None else f"each {found.group} of a row"
    yield (
        f"INTEGERS  {len(found.matrices)} matri{'x' if len(found.matrices) == 1 else 'ces'} of {found.bits} bits "
        f"with a scale for {group}, {format_bytes(found.nbytes)}"
        + (f"; at most {found.error:.2%} of a matrix of `{found.model}` lost" if found.error else "")
    )
    if found.agreement:
        yield _agreement(f"`{found.model}` as its files are", found.agreement)


def _agreement(other: str, found: Mapping[str, Any]) -> str:
    return (
        f"  beside {other} on {found['tokens']} tokens of {found['probe']}: KL {found['kl_mean']:.2g} on "
        f"average, {found['kl_max']:.2g} at most, same likeliest token {found['top1']:.1%}, "
        f"perplexity {found['perplexity']:.4g} (original {found['original_perplexity']:.4g})"
    )


def _apart(other: Elsewhere) -> Iterator[str]:
    yield f"  {_list(other.apps)}: same weights, stored once, launched apart because {other.reason}"


def _nearest(sibling: Sibling) -> Iterator[str]:
    where = f"block {sibling.block} of `{sibling.model}`" + (", which it derives from" if sibling.derives else "")
    if not sibling.differences:
        yield f"  the same as {where}"
        return
    tensors = [item for item in sibling.differences if item.part == "tensor"]
    amount = (
        f"{len(tensors)} of {_count(sibling.of_tensors, 'tensor')}, {format_bytes(sum(t.nbytes for t in tensors))}"
        if tensors
        else "not its tensors, which are stored once"
    )
    yield f"  nearest: {where}; what differs: {amount}"
    for item in sibling.differences:
        yield f"    {_difference(item)}"


def _difference(item: Difference) -> str:
    match item.part:
        case "tensor":
            return f"{item.name}  {format_bytes(item.nbytes)}"
        case "bind":
            return f"{item.name} is {item.detail[0]}, there {item.detail[1]}"
        case "structure":
            return f"structure: {'; '.join(item.detail[:_SHOWN])}" + ("; ..." if len(item.detail) > _SHOWN else "")
        case "prelude":
            return f"what it reads from positions: {', '.join(item.detail) or 'one of the two reads nothing'}"
        case _:
            return "which outputs of its prelude it reads"


def _segment(why: Why) -> Iterator[str]:
    first, last = why.segment_blocks
    yield f"SEGMENT {why.segment}  {f'block {first}' if first == last else f'blocks {first}-{last}'}"
    yield f"  begins {'where the chain begins' if why.begins is None else _reason(why.begins)}"
    yield f"  ends {_reason(why.ends)}"


def _reason(bound: Bound) -> str:
    if bound.block is None:
        return "where the chain ends"
    if bound.differs == ("end",):
        return f"after block {bound.block}: {bound.reason}"
    names = [item.partition(":")[2] or item for item in bound.differs]
    return f"after block {bound.block}: {bound.reason} in {_list(names)}"


def _adapter(why: Why) -> Iterator[str]:
    if why.merged is not None:
        rounding = "" if why.merged.rounding is None else f"; rounding took {why.merged.rounding:.2%} of its change"
        yield (
            f"MERGED  into weights of its own, {format_bytes(why.merged.private_bytes)}: expected to save "
            f"{why.merged.gain:.1%} of a step's time{rounding}"
        )
    if why.weighed is not None:
        yield from _weighed(why.weighed, is_merged=why.merged is not None)
    if why.sides is None:
        what = f"of rank {why.side_rank}" if why.side_rank else "there is one"
        yield f"ADAPTER  {what}; where it acts is in the zoo, which is not at hand (`--zoo DIR`)"
    elif why.sides:
        yield f"ADAPTER  acts here, beside the shared weights: {'; '.join(why.sides)}"
    else:
        yield f"ADAPTER  {'none acts here' if why.has_sides else 'none'}"


def _weighed(weighed: Weighed, *, is_merged: bool) -> Iterator[str]:
    """Both ways, of the goals up to the first in which they differ."""
    if not is_merged:
        much = weighed.rounding is not None
        lost = f": rounding would take {weighed.rounding:.2%} of its change" if much else ""
        yield f"NOT MERGED  beside shared weights{lost}"
    same = 0
    while weighed.beside[same : same + 1] == weighed.merged[same : same + 1] and same + 1 < len(weighed.beside):
        same += 1
    for name, values in (("beside shared weights", weighed.beside), ("merged", weighed.merged)):
        yield f"  {name}: {_amounts(weighed.goals, values[: same + 1])}"


def _amounts(goals: tuple[str, ...], values: tuple[float, ...]) -> str:
    words = {
        "devices": "{:.0f} devices", "cost": "{:.6g} an hour", "unserved": "{:.3g} requests/s left out",
        "peak_load": "the busiest busy for {:.2%}", "slo": "{:.2%} of what targets allow",
    }  # fmt: skip
    return (
        ", ".join(
            words[goal].format(value) if goal in words else f"{goal} {format_bytes(int(value))}"
            for goal, value in zip(goals, values, strict=False)
        )
        or "no placement was found"
    )


def _cache(why: Why) -> Iterator[str]:
    if not why.kv:
        yield "KV  none: this block has no attention"
    for facts in why.kv:
        yield from _layer(facts)


def _layer(facts: KvFacts) -> Iterator[str]:
    first, last = facts.group_layers
    window = "" if facts.window is None else f", window {facts.window}"
    yield (
        f"KV  layer {facts.layer}, in group {facts.group} (layers {first}-{last}){window}: "
        f"{facts.bytes_per_token} bytes a token in {facts.dtype}"
    )
    if facts.shared_with:
        yield f"  proven equal and in one isolation group with {_list(facts.shared_with)}"
    if facts.isolated:
        yield f"  proven equal with {_list(facts.isolated)}, never shared: another isolation group"
    if not facts.shared_with and not facts.isolated:
        yield "  equal to that of no other app"


def _pair_head(pair: Pair) -> Iterator[str]:
    names = [f"{app} ({model})" for app, model in zip(pair.apps, pair.models, strict=True)]
    yield " and ".join(names) + (": one model version" if pair.same_chain else "")


def _pair_weights(pair: Pair) -> Iterator[str]:
    weights = pair.weights
    yield (
        f"WEIGHTS  {weights.blocks} of {weights.of[0]} and {weights.of[1]} blocks are the same, place by place; "
        f"{format_bytes(weights.shared_bytes)} stored once, {format_bytes(weights.own_bytes[0])} and "
        f"{format_bytes(weights.own_bytes[1])} of their own, adapters aside"
    )
    if weights.segments:
        yield (
            f"  launched together: {_count(weights.launched_together, 'block')} "
            f"in {_count(len(weights.segments), 'segment')} ({_list(map(str, weights.segments))})"
        )
    else:
        because = f" because {pair.kv.apart}" if pair.kv.apart and weights.shared_bytes else ""
        yield f"  never launched together{because}"


def _pair_kv(pair: Pair) -> Iterator[str]:
    kv = pair.kv
    if kv.apart:
        yield f"KV  no page can be shared because {kv.apart}"
        return
    if not kv.layers:
        yield f"KV  no layer of {kv.of} is proven equal"
        return
    yield f"KV  {_layers(kv)} proven equal"
    if not kv.allowed:
        yield "  never shared: the apps are in different isolation groups"
        return
    yield f"  {kv.saved_bytes_per_token} bytes a token stored once instead of twice"
    if kv.skips_prefill:
        yield "  at every layer: what one has computed the other reads, and skips its prefill"
    if kv.boundary is not None:
        yield (
            f"  partial, so that memory is saved and prefill is not, unless hidden states are kept before block "
            f"{kv.boundary.block}:"
        )
        yield f"    keep       {kv.boundary.keep_bytes_per_token} bytes a token"
        flops = kv.boundary.recompute_flops_per_token
        yield f"    recompute  {'an unknown number of' if flops is None else f'{flops:,}'} operations a token"
        yield "  the runtime reads shared pages only where all layers are equal"


def _layers(kv: PairKv) -> str:
    if kv.layers == kv.of:
        return f"all {kv.of} layers are"
    first = f"the first layer of {kv.of} is" if kv.layers == 1 else f"the first {kv.layers} of {kv.of} layers are"
    return first if kv.exact else f"at least {first}"


def _list(names: Iterator[str] | Sequence[str]) -> str:
    items = list(names)
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
