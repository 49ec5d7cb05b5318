"""The same models on the same devices, served in several ways, each with replicas where they help most.

In: a plan, whose cluster's devices are all used; what is asked of each app; ways to serve (`stored.py`). Out: a fleet
for each. One rule for all of them: every model goes where the busiest cell stays idlest, then the busiest cell gives
parts of its traffic to replicas elsewhere, or a model, as long as that makes it less busy and the KV cache that the
load is expected to need fits beside them. How much a launch counts against a token depends on how often it runs, which
nobody knows before: several guesses are tried, and a judge, the simulator, takes the best. Every way gets as many
tries. Invariant: the same question has the same answer.

Cells are as wide as the largest model needs by itself, the same for every way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from blockc.cost import TICKS_PER_S, DeviceRates, StepPricer, cell_rates, node_link
from blockc.cost.rates import LINK_LATENCY_S
from blockc.diag import Diagnostics
from blockc.plan import ExecutionPlan
from blockc.simulate.baselines import LESS
from blockc.simulate.cells import Cell, device_bytes, fits, least_width, page_bytes, pages_by_need
from blockc.simulate.fleet import Fleet, FleetInstance, apps_of, instance_limits, network_of
from blockc.simulate.report import Targets, report
from blockc.simulate.simulate import simulate
from blockc.simulate.stored import Way, models_alone, ways
from blockc.simulate.workload import Workload, first
from blockc_runtime.limits import engine_limits
from blockc_runtime.router import Link, Network

# Seconds from one launch of a model to the next.
_GUESSES: Final = (0.02, 0.04, 0.08, 0.12, 0.18, 0.25, 0.5, 1.0)
# Of the KV cache that the load is expected to need: so much has to fit beside the weights, or less if nothing does.
_KV_PARTS: Final = (1.0, 0.5, 0.0)
RANDOM: Final = "random"
_DRAWS: Final = 100
# Requests that a try is judged by.
_JUDGED: Final = 3000
# How long an answer's token takes, for the KV cache that is needed at once; and room for bursts.
_TOKEN_S: Final = 0.03
_BURST: Final = 1.5
_LEAST_GAIN: Final = 1e-3
_MOST_CHANGES: Final = 1000
_AS_THEY_ARE: Final[Mapping[int, int]] = MappingProxyType({})

Judge = Callable[[Fleet], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is asked of one chain: requests a second, and tokens of each on average."""

    rate_rps: float
    prompt_tokens: float
    output_tokens: float


def demand_of(plan: ExecutionPlan, workload: Workload) -> tuple[Demand, ...]:
    """By chain, on average over a workload."""
    seconds = max(workload.horizon_s, 1e-9)
    counts = [[0, 0, 0] for _ in plan.chains]
    for item in workload.arrivals:
        own = counts[plan.apps[item.app].chain]
        own[0] += 1
        own[1] += item.prompt_tokens
        own[2] += item.output_tokens
    return tuple(
        Demand(rate_rps=count / seconds, prompt_tokens=prompt / max(1, count), output_tokens=output / max(1, count))
        for count, prompt, output in counts
    )


def judge_of(load: Workload, targets: Mapping[str, Targets]) -> Judge:
    """By a simulation of the first requests of a load: who is in time, then how long answers take."""
    latest_s = load.arrivals[min(_JUDGED, len(load.arrivals)) - 1].at_s if load.arrivals else 0.0
    part = first(load, latest_s)

    def judge(fleet: Fleet) -> tuple[float, ...]:
        total = report(simulate(fleet, part), targets).total
        return (-(total.attainment or 0.0), 0.0 if total.e2e is None else total.e2e.p95_s)

    return judge


def equal_fleet(
    plan: ExecutionPlan,
    way: Way,
    rates: Mapping[str, DeviceRates],
    demand: Sequence[Demand],
    judge: Judge,
    *,
    between: Link | None = None,
    diags: Diagnostics,
) -> Fleet | None:
    """The best fleet of all tries on every device of the plan's cluster. Smaller is better to ``judge``.

    Reports what fits nowhere (BC401), and is then None.
    """
    tries = equal_tries(plan, way, rates, demand, between=between)
    if not tries:
        diags.report(
            "BC401",
            f"`{way.label}` cannot hold all models on the {len(plan.devices)} devices of the cluster",
            help=f"leave `{way.label}` out, or add devices",
        )
        return None
    return min(enumerate(tries), key=lambda item: (judge(item[1]), item[0]))[1]


def equal_tries(
    plan: ExecutionPlan,
    way: Way,
    rates: Mapping[str, DeviceRates],
    demand: Sequence[Demand],
    *,
    between: Link | None = None,
) -> tuple[Fleet, ...]:
    """What the rule makes of every guess; none where not all models fit."""
    width = _cell_width(plan)
    for kv in _KV_PARTS:
        tries: list[Fleet] = []
        for tau_s in _GUESSES:
            arranged = _Arranging(plan, way, rates, demand, width, tau_s=tau_s, kv=kv)
            if arranged.place():
                arranged.improve()
                tries.append(arranged.fleet(between))
        if tries:
            return tuple(tries)
    return ()


def random_fleet(
    plan: ExecutionPlan,
    rates: Mapping[str, DeviceRates],
    demand: Sequence[Demand],
    like: Fleet,
    *,
    seed: int,
    between: Link | None = None,
    diags: Diagnostics,
) -> Fleet | None:
    """As many replicas of each chain as ``like``, which is ours, has, on cells that are drawn.

    Reports where a hundred draws do not fit (BC401), and is then None.
    """
    copies = {app.chain: len(app.instances) for app in like.apps}
    drawn = random.Random(seed)  # noqa: S311 - places, not secrets
    ours, width = ways(plan)["ours"], _cell_width(plan)
    for _ in range(_DRAWS):
        arranged = _Arranging(plan, ours, rates, demand, width, tau_s=_GUESSES[0], kv=0.0)
        if arranged.draw(copies, drawn):
            return replace(arranged.fleet(between), label="random")
    diags.report("BC401", f"{_DRAWS} random placements do not fit the cluster", help="leave `random` out")
    return None


def equal_fleets(
    plan: ExecutionPlan,
    rates: Mapping[str, DeviceRates],
    names: Sequence[str],
    load: Workload,
    judge: Judge,
    *,
    diags: Diagnostics,
) -> tuple[Fleet, ...]:
    """Ours, and what is named: ways to serve, `baselines.LESS` of ours, ``random``. Reports BC401."""
    demand, known, between = demand_of(plan, load), ways(plan), network_of(plan, ()).between
    ours = equal_fleet(plan, known["ours"], rates, demand, judge, between=between, diags=diags)
    if ours is None:
        return ()
    found: list[Fleet | None] = [ours]
    for name in names:
        if name in LESS:
            found.append(LESS[name](plan, ours))
        elif name == RANDOM:
            found.append(random_fleet(plan, rates, demand, ours, seed=0, between=between, diags=diags))
        else:
            found.append(equal_fleet(plan, known[name], rates, demand, judge, between=between, diags=diags))
    return tuple(fleet for fleet in found if fleet is not None)


class _Arranging:
    """Cells that are filled. ``load[c]``: the part of the time in which cell c is expected to be busy."""

    def __init__(
        self,
        plan: ExecutionPlan,
        way: Way,
        rates: Mapping[str, DeviceRates],
        demand: Sequence[Demand],
        width: int,
        *,
        tau_s: float,
        kv: float,
    ) -> None:
        self._plan, self._way, self._demand, self._tau_s, self._kv = plan, way, demand, tau_s, kv
        self._kind = plan.devices[plan.instances[0].devices[0]].kind
        self._rates = rates
        self._chains = sorted({app.chain for app in plan.apps})
        self.cells = list(_cells(plan, width))
        self._pricer = StepPricer(way.work, self._cell_rates(width))
        self._limits = engine_limits(plan)
        self._set_up_s = [
            self._pricer.affine(segment, samples=True).set_up_s for segment in range(self._pricer.segments)
        ]
        self._gain = self._cell_rates(width).flops_per_s / self._cell_rates(1).flops_per_s
        alone = StepPricer(way.work, self._cell_rates(1))
        self._traffic = [self._busy(alone, chain) for chain in range(len(plan.chains))]
        self._where: dict[int, list[int]] = {chain: [] for chain in self._chains}

    def place(self) -> bool:
        """Every chain once, the busiest first; False if one does not fit."""
        for chain in sorted(self._chains, key=lambda item: (-self._traffic[item], item)):
            open_ = [index for index in range(len(self.cells)) if self._fits(index, chain, copies=1)]
            if not open_:
                return False

            def busiest(index: int, chain: int = chain) -> tuple[float, int, int]:
                added = self.cells[index].added_bytes(self._way.stored[chain])
                return self._load_with(index, chain, copies=1), added, index

            self._put(min(open_, key=busiest), chain)
        return True

    def improve(self) -> None:
        """Take from the busiest cell as long as that helps: a replica elsewhere takes a part, or a model moves."""
        done: set[int] = set()
        for _ in range(_MOST_CHANGES):
            loads = [self._load(index) for index in range(len(self.cells))]
            open_ = [index for index in range(len(self.cells)) if index not in done]
            if not open_:
                return
            hot = max(open_, key=lambda index: (loads[index], -index))
            found = min(self._reliefs(hot, loads[hot]), default=None)
            if found is None:
                done.add(hot)
                continue
            _, target, chain, moves = found
            self._put(target, chain)
            if moves:
                self._take_away(hot, chain)
            done.clear()

    def draw(self, copies: Mapping[int, int], drawn: random.Random) -> bool:
        """Every chain so many times, on cells by chance; False if one does not fit where it should go."""
        for chain in sorted(self._chains, key=lambda item: (-self._way.stored[item].nbytes, item)):
            for _ in range(copies[chain]):
                open_ = [i for i in range(len(self.cells)) if i not in self._where[chain] and self._fits(i, chain)]
                if not open_:
                    return False
                self._put(drawn.choice(open_), chain)
        return True

    def fleet(self, between: Link | None) -> Fleet:
        """The cells as instances."""
        plan = self._plan
        used = [index for index, cell in enumerate(self.cells) if cell.chains]
        number = {index: position for position, index in enumerate(used)}
        link = node_link(plan, self._kind)
        return Fleet(
            label=self._way.label,
            apps=tuple(
                app.on(
                    tuple(number[index] for index in sorted(self._where[app.chain])),
                    (1.0,) * len(self._where[app.chain]),
                )
                for app in apps_of(plan)
            ),
            instances=tuple(self._instance(index) for index in used),
            devices=sum(cell.width for cell in self.cells),
            weights_bytes=sum(cell.weights_bytes for cell in self.cells),
            network=Network(
                nodes=tuple(self.cells[index].node for index in used),
                within=None if link is None else Link(bytes_per_s=link, latency_s=LINK_LATENCY_S),
                between=between,
            ),
        )

    def _instance(self, index: int) -> FleetInstance:
        cell = self.cells[index]
        need: dict[int, float] = {}
        for chain in cell.chains:
            for group, nbytes in self._kv_bytes(chain, cell.width).items():
                need[group] = need.get(group, 0.0) + nbytes / len(self._where[chain])
        return FleetInstance(
            name=f"{cell.node}/{index}",
            width=cell.width,
            limits=instance_limits(
                self._plan,
                self._limits,
                pages_by_need(self._plan, cell, need),
                max_rows=self._plan.batching.max_rows,
            ),
            rates=self._cell_rates(cell.width),
            pricer=self._pricer,
        )

    def _reliefs(self, hot: int, load: float) -> Iterator[tuple[float, int, int, bool]]:
        """What makes a cell less busy, no other as busy: how busy the busier is then, where, what, whether it moves.

        A chain's traffic is divided evenly among its replicas.
        """
        own = self.cells[hot]
        for chain in own.chains:
            copies = len(self._where[chain])
            shared_here = self._load_of(own.chains, copies={chain: copies + 1})
            moved_here = self._load_of([item for item in own.chains if item != chain])
            for target in range(len(self.cells)):
                if target in self._where[chain] or not self._fits(target, chain):
                    continue
                shared = max(shared_here, self._load_with(target, chain, copies=copies + 1))
                moved = max(moved_here, self._load_with(target, chain, copies=copies))
                for busier, moves in ((shared, False), (moved, True)):
                    if busier < load * (1 - _LEAST_GAIN):
                        yield busier, target, chain, moves

    def _take_away(self, index: int, chain: int) -> None:
        cell = self.cells[index]
        kept = [item for item in cell.chains if item != chain]
        cell.units, cell.own_bytes, cell.chains = {}, 0, []
        for item in kept:
            cell.take(item, self._way.stored[item])
        self._where[chain].remove(index)

    def _put(self, index: int, chain: int) -> None:
        self.cells[index].take(chain, self._way.stored[chain])
        self._where[chain].append(index)

    def _load(self, index: int) -> float:
        return self._load_of(self.cells[index].chains)

    def _load_with(self, index: int, chain: int, *, copies: int) -> float:
        """With one more chain, which ``copies`` cells have then."""
        return self._load_of([*self.cells[index].chains, chain], copies={chain: copies})

    def _load_of(self, chains: Sequence[int], *, copies: Mapping[int, int] = _AS_THEY_ARE) -> float:
        """The part of the time that a cell with these chains is busy: launches, each once in ``tau_s``, and tokens."""
        pricer = self._pricer
        segments = {segment for chain in chains for segment in pricer.segments_of(chain)}
        set_up_s = sum(self._set_up_s[segment] for segment in sorted(segments))
        set_up_s += sum(pricer.side_read(chain) for chain in chains) / TICKS_PER_S
        traffic = sum(self._traffic[chain] / copies.get(chain, len(self._where[chain])) for chain in chains)
        return set_up_s / self._tau_s + traffic / self._gain

    def _fits(self, index: int, chain: int, *, copies: int | None = None) -> bool:
        """With the KV cache that its part of the traffic, and that of those who are there, is expected to need."""
        cell = self.cells[index]
        copies = copies or len(self._where[chain]) + 1
        need = sum(self._kv_bytes(chain, cell.width).values()) / copies
        for other in cell.chains:
            need += sum(self._kv_bytes(other, cell.width).values()) / len(self._where[other])
        return fits(self._plan, cell, chain, self._way.stored[chain], kv_bytes=int(self._kv * need))

    def _kv_bytes(self, chain: int, width: int) -> dict[int, float]:
        """By group, of the requests that are expected to be under way (Little's law)."""
        own = self._demand[chain]
        under_way = own.rate_rps * own.output_tokens * _TOKEN_S * _BURST
        tokens = under_way * (own.prompt_tokens + own.output_tokens / 2)
        groups = self._plan.kv_groups
        return {
            kv.group: tokens / groups[kv.group].page_tokens * page_bytes(self._plan, kv.group, width)
            for kv in self._plan.chains[chain].kv
        }

    def _busy(self, pricer: StepPricer, chain: int) -> float:
        """Seconds of one device a second that a chain's tokens take, launches left out. ``pricer``: of that device."""
        own = self._demand[chain]
        token_s = sum(pricer.affine(segment).token_s for segment in pricer.segments_of(chain))
        context = int(own.prompt_tokens + own.output_tokens / 2)
        row_s = (pricer.constant(1) - pricer.constant(0) + pricer.attention(chain, context, 1)) / TICKS_PER_S
        return own.rate_rps * (own.prompt_tokens * token_s + own.output_tokens * (token_s + row_s))

    def _cell_rates(self, width: int) -> DeviceRates:
        link = node_link(self._plan, self._kind)
        return cell_rates(self._rates[self._kind], width=width, link_bytes_per_s=link)


def _cell_width(plan: ExecutionPlan) -> int:
    """As many devices as the largest model needs alone."""
    sizes = models_alone(plan)
    return max(least_width(plan, chain, sizes[chain]) or 8 for chain in {app.chain for app in plan.apps})


def _cells(plan: ExecutionPlan, width: int) -> Iterator[Cell]:
    """Every node's devices in groups of ``width``; what is left over stays idle."""
    offered_bytes = device_bytes(plan)
    for node in plan.nodes:
        count = sum(device.node == node for device in plan.devices)
        for _ in range(count // width):
            yield Cell(width=width, offered_bytes=offered_bytes * width, node=node)
