"""Why nothing fits, and the least that would have to change (BC401).

In: an infeasible problem. Out: one diagnostic: needed against offered, the biggest contributors with the
lines that ask for them, and the smallest relaxation of each kind that makes the problem feasible, smallest first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from blockc.diag import Diagnostics, Label
from blockc.ir.layout import format_bytes
from blockc.place.bound import devices_bound
from blockc.place.cells import Views, fill_cells
from blockc.place.sizes import Sizes

_MIB = 1 << 20
_GIB = 1 << 30
_SHOWN = 4
_SHORTEST_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Relaxation:
    """A change, how much of what it changes (0.1: a tenth), and how a spec says it."""

    share: float
    text: str


def explain_infeasible(views: Views, *, diags: Diagnostics, chain: int | None = None) -> None:
    """Report BC401. Looks first for a chain that fits no device and no cell, since then nothing else matters.

    ``chain``: one that is known to fit nowhere with what it has in flight.
    """
    problem, sizes = views.problem, views.at(1)
    alone = [sizes.least([chain]).used_bytes for chain in range(len(problem.chains))]
    worst = max(range(len(alone)), key=lambda chain: (alone[chain], -chain))
    blocks = views.blocks()
    if chain is not None and any(views.least_width(chain, block) is not None for block in blocks):
        own = problem.chains[chain]
        needed = sizes.least([chain]).used_bytes
        message = f"`{own.label}` needs {format_bytes(needed)} and what its load has in flight, no device has that"
        _report(views, [chain], message, diags)
        return
    if len(problem.devices) > 1 and all(views.least_width(worst, block) is None for block in blocks):
        widest = max(blocks, key=lambda block: (block.widths[-1] * block.offered_bytes, block.offered_bytes))
        width = widest.widths[-1]
        needed = views.at(width).least([worst]).used_bytes
        most = format_bytes(widest.offered_bytes)
        where = "on one device, the largest offers" if width == 1 else f"on each of {width} devices, they offer"
        _report(
            views,
            [worst],
            f"`{problem.chains[worst].label}` needs {format_bytes(needed)} {where} {most}",
            diags,
        )
        return
    every = list(range(len(problem.chains)))
    needed, offered = sizes.least(every).used_bytes, sum(max(0, d.offered_bytes) for d in problem.devices)
    if needed > offered:
        message = f"the plan needs at least {format_bytes(needed)}, devices offer {format_bytes(offered)}"
    else:
        message = (
            f"no placement of {len(every)} models on {len(problem.devices)} devices fits: they need "
            f"{format_bytes(needed)} of {format_bytes(offered)}, but each stays whole on one device or cell"
        )
    _report(views, every, message, diags)


def _report(views: Views, chains: list[int], message: str, diags: Diagnostics) -> None:
    problem, sizes = views.problem, views.at(1)
    least = sizes.least(chains)
    parts = {
        "weights": least.weights_bytes,
        "blocks that take turns": least.blocks_bytes,
        "fine-tunes": least.sides_bytes,
        "KV cache of one full sequence": least.kv_bytes,
        "workspace": least.workspace_bytes,
    }
    notes = [", ".join(f"{name} {format_bytes(nbytes)}" for name, nbytes in parts.items() if nbytes)]
    notes += _weights_by_owner(sizes, chains)
    if 2 * least.workspace_bytes > least.used_bytes:
        notes.append("the workspace grows with `max_batched_tokens` and `max_num_seqs` of the policy's `batching`")
    help_ = "\n".join(
        f"{'smallest relaxation' if place == 0 else 'next'}: {item.text}"
        for place, item in enumerate(_relaxations(views))
    )
    device = problem.devices[0]
    one = len(problem.devices) == 1
    diags.report(
        "BC401",
        message,
        at=device.span if one and device.span is not None else problem.cluster_span,
        label=f"{_count(len(problem.devices), 'device')}: {_offer(sizes)}",
        secondary=_labels(sizes, chains),
        notes=tuple(notes),
        help=help_ or None,
    )


def _offer(sizes: Sizes) -> str:
    devices = sizes.problem.devices
    memory, reserve = sum(d.memory_bytes for d in devices), sum(d.reserve_bytes for d in devices)
    return f"{format_bytes(memory)} - {format_bytes(reserve)} reserve" if reserve else format_bytes(memory)


def _weights_by_owner(sizes: Sizes, chains: list[int]) -> list[str]:
    """The biggest sets of tensors that these chains use, each with all models that use it."""
    chosen = set(chains)
    totals: dict[tuple[int, ...], int] = {}
    for bundle in sizes.bundles:
        if bundle.chains & chosen:
            owners = tuple(sorted(bundle.chains))
            totals[owners] = totals.get(owners, 0) + bundle.nbytes
    ranked = sorted(totals.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    found = []
    for owners, nbytes in ranked:
        labels = [sizes.problem.chains[chain].label for chain in owners]
        shown = ", ".join(f"`{label}`" for label in labels[:_SHOWN])
        more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
        who = f"only {shown} uses" if len(labels) == 1 else f"{len(labels)} models share: {shown}{more}"
        found.append(f"{format_bytes(nbytes)} of weights {who}")
    return found


def _labels(sizes: Sizes, chains: list[int]) -> tuple[Label, ...]:
    """For the chains that add most to the others: the line that declares them, and how much."""
    everything = sizes.least(chains).used_bytes
    added = [(everything - sizes.least([c for c in chains if c != chain]).used_bytes, chain) for chain in chains]
    if len(chains) > _SHOWN * 50:  # each entry takes time in proportion to all chains
        added = [(sizes.least([chain]).used_bytes, chain) for chain in chains]
    labels = []
    for nbytes, chain in sorted(added, key=lambda item: (-item[0], item[1]))[:_SHOWN]:
        span = sizes.problem.chains[chain].span
        if span is not None and nbytes:
            text = f"adds {format_bytes(nbytes)}" if len(chains) > 1 else f"needs {format_bytes(nbytes)}"
            labels.append(Label(span=span, text=text))
    return tuple(labels)


def _relaxations(views: Views) -> list[_Relaxation]:
    found = [item for item in (_shorter(views), _more_memory(views)) if item is not None]
    return sorted(found, key=lambda item: (item.share, item.text))


def _shorter(views: Views) -> _Relaxation | None:
    """The longest `max_model_len` with which everything fits."""
    problem = views.problem
    longest = max(chain.max_model_len for chain in problem.chains)
    low, high = 0, longest // _SHORTEST_TOKENS  # in steps of 16 tokens; low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(Views(problem=problem, max_model_len=middle * _SHORTEST_TOKENS)):
            low = middle
        else:
            high = middle
    if low == 0:
        return None
    tokens = low * _SHORTEST_TOKENS
    return _Relaxation(share=1 - tokens / longest, text=f"`max_model_len = {tokens}` (is {longest})")


def _more_memory(views: Views) -> _Relaxation | None:
    """The least memory of every device with which everything fits, in whole MiB or GiB."""
    problem, sizes = views.problem, views.at(1)
    current = max(device.memory_bytes for device in problem.devices)
    reserve = max(device.reserve_bytes for device in problem.devices)
    enough = sizes.least(range(len(problem.chains))).used_bytes + reserve
    step = _GIB if enough >= 4 * _GIB else _MIB
    low, high = 0, -(-max(enough, current) // step)  # in steps; low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        devices = tuple(replace(d, memory_bytes=max(d.memory_bytes, middle * step)) for d in problem.devices)
        if _fits(views.with_devices(devices)):
            high = middle
        else:
            low = middle
    unit = "GiB" if step == _GIB else "MiB"
    each = " on each device" if len(problem.devices) > 1 else ""
    share = high * step / max(current, 1) - 1
    return _Relaxation(share=share, text=f"`memory = {high}{unit}`{each} (is {format_bytes(current)})")


def _fits(views: Views) -> bool:
    """Whether an assignment is found without a solver."""
    return devices_bound(views.at(1)) <= len(views.problem.devices) and fill_cells(views) is not None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
