"""What a chain's way costs, hop by hop: bytes and seconds, of one request by itself.

In: a plan; the profile of a device, if one was measured. Out: a :class:`Way` for each chain. A hop is a segment on the
devices of its instance. Prices are those of `blockc.cost`: a roofline of what the device catalogue says, or of what was
measured. Invariant: the parts of a way add up to the price of its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blockc.cost import (
    TICKS_PER_S,
    AttentionWork,
    DeviceRates,
    PlanWork,
    StepPricer,
    catalogue_rates,
    cell_rates,
    node_link,
    plan_work,
)
from blockc.plan import ExecutionPlan
from blockc.spec.device_kinds import DEVICE_KINDS

if TYPE_CHECKING:
    from blockc.cost.profile import Profile

_PROMPT_TOKENS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes that a decode step reads; seconds of the token that it yields; seconds of reading a prompt."""

    read_bytes: int
    token_s: float
    prompt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One segment on the devices that run it."""

    segment: int
    devices: tuple[int, ...]
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Hops in order, and what comes on top: the fine-tune's own, attention, and what every step takes."""

    hops: tuple[Hop, ...]
    sides: Cost
    attention: Cost
    steps: Cost

    @property
    def costs(self) -> tuple[Cost, ...]:
        """All of them."""
        return (*(hop.cost for hop in self.hops), self.sides, self.attention, self.steps)

    @property
    def read_bytes(self) -> int:
        """Of a decode step."""
        return sum(cost.read_bytes for cost in self.costs)

    @property
    def token_s(self) -> float:
        """Seconds a token, with a prompt behind it."""
        return sum(cost.token_s for cost in self.costs)

    @property
    def prompt_s(self) -> float:
        """Seconds until the first token."""
        return sum(cost.prompt_s for cost in self.costs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """``by_chain``: of chains whose devices' rates are known. ``source``: where the rates come from, in words."""

    by_chain: Mapping[int, Way]
    prompt_tokens: int
    source: str
    unknown: tuple[str, ...]


def ways_of(plan: ExecutionPlan, profile: Profile | None = None) -> Ways:
    """Price every chain that is placed. ``profile``: used for devices of its kind."""
    work = plan_work(plan)
    kinds = sorted({plan.devices[device].kind for instance in plan.instances for device in instance.devices})
    rates = {kind: own for kind in kinds if (own := _rates(kind, profile)) is not None}
    pricing = _Pricing(plan, work, rates)
    prompt = min([_PROMPT_TOKENS, *(max(1, chain.max_model_len // 2) for chain in plan.chains)])
    ways: dict[int, Way] = {}
    for route in plan.routes:
        instances = route.alternatives[0]
        if all(map(pricing.knows, instances)):
            ways[route.chain] = pricing.way(route.chain, instances, prompt)
    return Ways(
        by_chain=ways,
        prompt_tokens=prompt,
        source=_source(kinds, profile),
        unknown=tuple(kind for kind in kinds if kind not in rates),
    )


def _rates(kind: str, profile: Profile | None) -> DeviceRates | None:
    if profile is not None and profile.device == kind:
        return profile.device_rates
    known = DEVICE_KINDS.get(kind)
    return None if known is None else catalogue_rates(known)


def _source(kinds: list[str], profile: Profile | None) -> str:
    if profile is None or profile.device not in kinds:
        return "a roofline of the device catalogue's figures, not measured"
    words = f"the profile of a {profile.device} (half of the measured steps are within {profile.error_p50:.0%} of it)"
    return words if len(kinds) == 1 else f"{words}; of other devices a roofline of the catalogue's figures"


@dataclass(frozen=True, slots=True)
class _Pricing:
    plan: ExecutionPlan
    work: PlanWork
    rates: Mapping[str, DeviceRates]

    def knows(self, number: int) -> bool:
        """Whether an instance can be priced: a cell needs a link that is known, too."""
        devices = self.plan.instances[number].devices
        kind = self.plan.devices[devices[0]].kind
        return kind in self.rates and (len(devices) == 1 or node_link(self.plan, kind) is not None)

    def way(self, chain: int, instances: tuple[int, ...], prompt: int) -> Way:
        """``instances``: those that the chain travels through, in order."""
        place = {segment: number for number in reversed(instances) for segment in self.plan.instances[number].segments}
        pricers = {number: self._pricer(number) for number in instances}
        first = pricers[instances[0]]  # what is no hop's is counted where the chain begins
        budget = max(1, self.plan.batching.max_batched_tokens)
        chunks = [(start, min(budget, prompt - start)) for start in range(0, prompt, budget)]
        hops = []
        for segment in self.plan.chains[chain].segments:
            own, work = pricers[place[segment]], self.work.segments[segment]
            reading = [own.launch(segment, count, samples=start + count == prompt) for start, count in chunks]
            nbytes = work.read_bytes + work.row_read_bytes
            nbytes += sum(expert.nbytes * expert.chosen // expert.experts for expert in work.experts)
            cost = _cost(nbytes, own.launch(segment, 1, samples=1), sum(reading))
            hops.append(Hop(segment=segment, devices=self.plan.instances[place[segment]].devices, cost=cost))
        side_bytes = self.work.chains[chain].side_bytes
        sides = _cost(side_bytes, first.sides(chain, 1), sum(first.sides(chain, count) for _, count in chunks))
        attention = _cost(
            sum(_seen_bytes(item, prompt + 1) for item in self.work.chains[chain].attention),
            first.attention(chain, prompt, 1),
            sum(first.attention(chain, start, count) for start, count in chunks),
        )
        steps = _cost(0, first.constant(1), first.constant(1) * len(chunks))
        return Way(hops=tuple(hops), sides=sides, attention=attention, steps=steps)

    def _pricer(self, number: int) -> StepPricer:
        devices = self.plan.instances[number].devices
        kind = self.plan.devices[devices[0]].kind
        link = node_link(self.plan, kind)
        return StepPricer(self.work, cell_rates(self.rates[kind], width=len(devices), link_bytes_per_s=link))


def _cost(read_bytes: int, token: int, prompt: int) -> Cost:
    return Cost(read_bytes=read_bytes, token_s=token / TICKS_PER_S, prompt_s=prompt / TICKS_PER_S)


def _seen_bytes(item: AttentionWork, tokens: int) -> int:
    return item.token_bytes * (tokens if item.window is None else min(tokens, item.window))
