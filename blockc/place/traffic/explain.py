"""Why loads cannot be placed: targets that nothing reaches (BC501), lines that cannot hold together (BC402).

In: a problem, its packing, what the search ended with. Out: one diagnostic. Cheap checks of each chain alone come
first, each naming its line. Then a minimal set of lines: from all of them, each is left out for good if what is left
still cannot hold (deletion filter), so that in the end each is needed. "Cannot" is a plain solve without presolve,
which in ortools 9.15 claims too much, and is checked once more by a second one; no objective, one worker. Relaxations
are only named if a plan was found with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final

from blockc.diag import Diagnostics, Label
from blockc.place.bound import devices_bound
from blockc.place.cells import Views, all_fit
from blockc.place.explain import explain_infeasible
from blockc.place.traffic.aggregate import aggregate, closed_form
from blockc.place.traffic.flat import Flat, fits_flat
from blockc.place.traffic.goals import most_spent, said
from blockc.place.traffic.greedy import multi_start
from blockc.place.traffic.packing import Packing
from blockc.place.traffic.relaxed import Line, lines_of, milliseconds, more_devices, packing_with, scaled
from blockc.place.traffic.solve import Solved
from blockc.place.traffic.times import chain_times
from blockc.place.traffic.units import packing_of

_UNITS: Final = 1.0
_COUNT_UNITS: Final = 0.2
# With more lines each step of the filter takes too long for what it tells.
_MOST_LINES: Final = 120
_SHOWN: Final = 8
_MORE: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


def check_targets(views: Views, packing: Packing, *, diags: Diagnostics) -> bool:
    """Each chain alone. False exactly if something was reported."""
    late = [number for number in range(len(packing.groups)) if not is_able(packing, number)]
    for number in late:
        _report_alone(views, packing, number, diags)
    return not late


def is_able(packing: Packing, group: int) -> bool:
    """Whether some cell that exists, and that it may use, takes a unit of the group."""
    own = packing.groups[group]
    for block in packing.blocks:
        allowed = [device for device in block.devices if own.devices is None or device in own.devices]
        if any(packing.kinds[kind].width <= len(allowed) and packing.can(kind, group) for kind in block.kinds):
            return True
    return False


def _report_alone(views: Views, packing: Packing, group: int, diags: Diagnostics) -> None:
    problem, own = views.problem, packing.groups[group]
    chain = problem.chains[group]
    free = packing_with(views, [line for line in lines_of(problem) if line.kind != "rule"])
    if own.devices is not None and is_able(free, group):
        rules = [rule for rule in problem.rules if rule.kind == "pin" and group in rule.chains]
        diags.report(
            "BC402",
            f"`{chain.label}` cannot run where it is pinned",
            at=rules[0].span,
            secondary=tuple(Label(span=rule.span, text=rule.text) for rule in rules[1:] if rule.span is not None),
            notes=(f"it fits elsewhere, and not on {len(own.devices)} of the devices that the spec names",),
            help="pin it to a larger device, to a node, or nowhere",
        )
        return
    fast = [
        kind
        for kind in packing.kinds
        if kind.path_bytes(own) + kind.unit_bytes[group] + kind.activation[group] <= kind.offered_bytes
    ]
    load = chain.load
    if not fast or load is None:
        explain_infeasible(views, diags=diags, chain=group)
        return
    prompt_s, sweep_s = _least_times(views, packing, group)
    if load.ttft_s is not None and all(kind.limit[group] == 0 for kind in fast):
        diags.report(
            "BC501",
            f"the first token of `{chain.label}` cannot come within {milliseconds(load.ttft_s)}",
            at=load.slo_span or chain.span,
            notes=(
                f"one prompt of {float(load.prompt_tokens):.0f} tokens takes {milliseconds(prompt_s)} at best, "
                "by itself",
            ),
            help="a later target, shorter prompts, or faster devices",
        )
        return
    wanted = (
        "its tokens are" if load.tpot_s is None else f"a token of it is due every {milliseconds(load.tpot_s)}, they are"
    )
    diags.report(
        "BC501",
        f"`{chain.label}` cannot keep its pace: {wanted} read from weights that take too long to pass",
        at=load.slo_span or load.span or chain.span,
        notes=(f"one sweep of its weights takes {milliseconds(sweep_s)} at best, and each token needs one",),
        help="a later `ttft`, `tpot` or `e2e` target, or devices with more memory bandwidth; several of a node share a "
        "sweep",
    )


def _least_times(views: Views, packing: Packing, group: int) -> tuple[float, float]:
    """Of one prompt and of one sweep, on the kind of cell where each is shortest."""
    problem = views.problem
    load, work = problem.chains[group].load, problem.work
    prompts = []
    for kind in packing.kinds:
        rates = problem.rates_of(kind.device, kind.width)
        if rates is None or load is None or work is None:
            continue
        own = work.chains[group]
        prompts.append(chain_times(own, work.segments, rates, load, step_tokens=problem.max_batched_tokens).prompt_s)
    sweeps = [kind.path_ns(packing.groups[group]) + kind.step_ns for kind in packing.kinds if kind.limit[group]]
    return min(prompts, default=0.0), min(sweeps, default=0) / 1e9


def explain_packing(views: Views, packing: Packing, solved: Solved, *, diags: Diagnostics) -> None:
    """Report why there is no plan. Bytes first: nothing else matters where they do not fit."""
    problem = views.problem
    if devices_bound(views.at(1)) > len(problem.devices) or not all_fit(views):
        explain_infeasible(views, diags=diags)
        return
    help_ = "\n".join(_relaxations(views)) or None
    if not solved.infeasible:
        diags.report(
            "BC402",
            f"no placement of {len(problem.chains)} models on {len(problem.devices)} devices was found, and none "
            "was ruled out",
            at=problem.cluster_span,
            notes=(_bound_text(solved),),
            help=help_,
        )
        return
    core = minimal_core(views)
    at = next((line for line in core if line.kind == "rule"), None) or next(
        (line for line in core if line.kind == "devices"), core[0]
    )
    shown = [line for line in core if line is not at]
    more = f"; {len(shown) - _SHOWN} more lines are not shown" if len(shown) > _SHOWN else ""
    diags.report(
        "BC402",
        f"{len(core)} lines of the spec cannot hold together",
        at=at.span,
        label=at.text,
        secondary=tuple(Label(span=line.span, text=line.text) for line in shown[:_SHOWN] if line.span is not None),
        notes=(f"without any one of them the others can{more}",) if len(core) > 1 else (),
        help=help_,
    )


def _bound_text(solved: Solved) -> str:
    goal, least = solved.goal, said(solved.goal, solved.bound)
    if goal == "devices":
        return f"at least {least:.0f} devices are needed ({solved.bound_kind})"
    if goal == "cost":
        return f"it would cost at least {least:.6g} an hour ({solved.bound_kind})"
    return f"the busiest cell would be busy for at least {least:.1%} ({solved.bound_kind})"


def minimal_core(views: Views) -> list[Line]:
    """Lines that cannot hold together, of which none can be left out. All lines together must be impossible."""
    kept = lines_of(views.problem)
    size = len(kept) if len(kept) > _MOST_LINES else 1
    position = 0
    while position < len(kept) and size == 1:
        without = kept[:position] + kept[position + 1 :]
        if _impossible(views, without):
            kept = without
        else:
            position += 1
    return kept


def _impossible(views: Views, lines: Sequence[Line]) -> bool:
    """Whether these lines are proven to be too much. What is not settled counts as possible."""
    packing = packing_with(views, lines)
    if any(not is_able(packing, group) for group in range(len(packing.groups))):
        return True
    if multi_start(packing, 4) is not None:
        return False
    if closed_form(packing).infeasible:
        return True
    if not fits_flat(packing):
        counted = aggregate(packing, units=_COUNT_UNITS, least=1, most=most_spent(packing), seed=views.problem.seed)
        return counted.infeasible
    claims = [Flat(packing).run(units=_UNITS, seed=views.problem.seed, presolve=presolve) for presolve in (False, True)]
    return all(claim.infeasible for claim in claims)


def _relaxations(views: Views) -> list[str]:
    """The smallest of each kind with which a plan is found."""
    problem = views.problem
    found = []

    def fits(packing_: Callable[[], Packing]) -> bool:
        packing = packing_()
        return all(is_able(packing, group) for group in range(len(packing.groups))) and (
            multi_start(packing, 6) is not None
        )

    lines = lines_of(problem)
    for line in lines:
        if line.kind in ("rule", "headroom", "rows"):
            rest = [other for other in lines if other is not line]
            if fits(lambda rest=rest: packing_with(views, rest)):  # type: ignore[misc]
                found.append(f"without `{line.text}`")
    for count in _MORE:
        devices = more_devices(problem, count)
        if fits(lambda devices=devices: packing_of(views.with_devices(devices))):  # type: ignore[misc]
            found.append(f"with {count} more device{'' if count == 1 else 's'} like those of the cluster")
            break
    factor = _largest_rate(views, fits)
    if factor is not None:
        loaded = [chain for chain in problem.chains if chain.load is not None]
        hottest = max(loaded, key=lambda chain: chain.load.rate_rps if chain.load else 0)
        assert hottest.load is not None
        rate = float(hottest.load.rate_rps * factor)
        if len(loaded) == 1:
            found.append(f"with `rate` of `{hottest.label}` at {rate:.3g}rps or less")
        else:
            found.append(f"with every `rate` at {float(100 * factor):.0f} % or less (`{hottest.label}`: {rate:.3g}rps)")
        if problem.sheds is False:
            found.append("with `overload = shed` in the policy: load that does not fit is left out by `priority`")
    return [f"{'smallest relaxations found: ' if place == 0 else ''}{text}" for place, text in enumerate(found)]


def _largest_rate(views: Views, fits: Callable[[Callable[[], Packing]], bool]) -> Fraction | None:
    """The largest hundredths of all rates with which a plan is found; None: not even with one."""

    def holds(hundredths: int) -> bool:
        relaxed = scaled(views.problem, Fraction(hundredths, 100))
        return fits(lambda: packing_of(views.with_problem(relaxed)))

    if not any(chain.load for chain in views.problem.chains) or not holds(1):
        return None
    low, high = 1, 100
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Fraction(low, 100)
