"""What a chain's way costs, hop by hop: bytes and seconds, of one request by itself.

In: a plan; the profile of a device, if one was measured. Out: a :class:`Way` for each chain. A hop is a segment on the
devices of its instance. Prices are those of `blockc.cost`: a roofline of what the device catalogue says, or of what was
measured. Invariant: the parts of a way add up to the price of its steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    stage_works,
)
from blockc.cost.hops import stage_links
from blockc.plan import ExecutionPlan, InstanceEntry
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
    """One segment, or as much of it as a stage of a pipeline has, on the devices that run it."""

    segment: int
    first: int
    count: int
    devices: tuple[int, ...]
    cost: Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Hops in order, and what comes on top: the fine-tune's own, attention, and what every step takes.

    ``travel``: from stage to stage of a pipeline, where ``sent_bytes`` of each token pass; nothing is read for it.
    """

    hops: tuple[Hop, ...]
    sides: Cost
    attention: Cost
    steps: Cost
    travel: Cost = Cost(read_bytes=0, token_s=0.0, prompt_s=0.0)
    sent_bytes: int = 0

    @property
    def costs(self) -> tuple[Cost, ...]:
        """All of them."""
        return (*(hop.cost for hop in self.hops), self.sides, self.attention, self.steps, self.travel)

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
    pricing = _Pricing(plan, work, _priced_instances(plan, work, rates))
    prompt = min([_PROMPT_TOKENS, *(max(1, chain.max_model_len // 2) for chain in plan.chains)])
    ways: dict[int, Way] = {}
    for route in plan.routes:
        instances = route.alternatives[0]
        if pricing.instances.keys() >= set(instances):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Blocks ``first`` to ``stop`` of every path, on the devices that run them: all of an instance, or one stage."""

    first: int
    stop: int | None
    devices: tuple[int, ...]
    work: PlanWork
    price: StepPricer


@dataclass(frozen=True, slots=True, kw_only=True)
class _PricedInstance:
    """``whole``: what no hop's is; ``parts``: what hops are."""

    whole: StepPricer
    parts: tuple[_Part, ...]


def _priced_instances(
    plan: ExecutionPlan, work: PlanWork, rates: Mapping[str, DeviceRates]
) -> dict[int, _PricedInstance]:
    """Those that can be priced, by number: a cell needs a link that is known, too. Once for all chains."""
    found: dict[int, _PricedInstance] = {}
    for number, instance in enumerate(plan.instances):
        kind = plan.devices[instance.devices[0]].kind
        if kind not in rates:
            continue
        link = node_link(plan, kind)
        if instance.width == 1 or link is not None:
            own = cell_rates(rates[kind], width=instance.width, link_bytes_per_s=link)
            found[number] = _priced(plan, work, instance, own)
    return found


def _priced(plan: ExecutionPlan, work: PlanWork, instance: InstanceEntry, rates: DeviceRates) -> _PricedInstance:
    whole = StepPricer(work, rates)
    if not instance.stages:
        only = _Part(first=0, stop=None, devices=instance.devices, work=work, price=whole)
        return _PricedInstance(whole=whole, parts=(only,))
    works = stage_works(plan, [(stage.first, stage.count) for stage in instance.stages])
    parts = tuple(
        _Part(
            first=stage.first, stop=stage.first + stage.count, devices=stage.devices, work=own,
            price=StepPricer(own, rates),
        )
        for stage, own in zip(instance.stages, works, strict=True)
    )  # fmt: skip
    return _PricedInstance(whole=whole, parts=parts)


@dataclass(frozen=True, slots=True)
class _Pricing:
    plan: ExecutionPlan
    work: PlanWork
    instances: Mapping[int, _PricedInstance]

    def way(self, chain: int, instances: tuple[int, ...], prompt: int) -> Way:
        """``instances``: those that the chain travels through, in order."""
        place = {segment: number for number in reversed(instances) for segment in self.plan.instances[number].segments}
        first = self.instances[instances[0]].whole  # what is no hop's is counted where the chain begins
        budget = max(1, self.plan.batching.max_batched_tokens)
        chunks = [(start, min(budget, prompt - start)) for start in range(0, prompt, budget)]
        hops = [
            hop
            for segment in self.plan.chains[chain].segments
            for hop in self._hops(segment, self.instances[place[segment]], chunks, prompt)
        ]
        side_bytes = self.work.chains[chain].side_bytes
        sides = _cost(side_bytes, first.sides(chain, 1), sum(first.sides(chain, count) for _, count in chunks))
        attention = _cost(
            sum(_seen_bytes(item, prompt + 1) for item in self.work.chains[chain].attention),
            first.attention(chain, prompt, 1),
            sum(first.attention(chain, start, count) for start, count in chunks),
        )
        stages = max(1, sum(max(1, len(self.plan.instances[number].stages)) for number in instances))
        steps = _cost(0, stages * first.constant(1), stages * first.constant(1) * len(chunks))
        links = [link for number in instances for link in stage_links(self.plan, self.plan.instances[number])]
        sent = [(link, nbytes) for link, nbytes in links if link is not None]
        travel = Cost(
            read_bytes=0,
            token_s=sum(link.latency_s + nbytes / link.bytes_per_s for link, nbytes in sent),
            prompt_s=sum(len(chunks) * link.latency_s + prompt * nbytes / link.bytes_per_s for link, nbytes in sent),
        )
        return Way(
            hops=tuple(hops), sides=sides, attention=attention, steps=steps, travel=travel,
            sent_bytes=sum(nbytes for _, nbytes in links),
        )  # fmt: skip

    def _hops(
        self, segment: int, instance: _PricedInstance, chunks: Sequence[tuple[int, int]], prompt: int
    ) -> Iterator[Hop]:
        """The segment on its cell; on a pipeline a hop for each stage that has any of its blocks."""
        entry = self.plan.segments[segment]
        end = entry.first + entry.count
        for part in instance.parts:
            first, stop = max(entry.first, part.first), end if part.stop is None else min(end, part.stop)
            if first >= stop:
                continue
            own, launch = part.price, part.work.segments[segment]
            reading = [own.launch(segment, count, samples=start + count == prompt) for start, count in chunks]
            nbytes = launch.read_bytes + launch.row_read_bytes
            nbytes += sum(expert.nbytes * expert.chosen // expert.experts for expert in launch.experts)
            cost = _cost(nbytes, own.launch(segment, 1, samples=1), sum(reading))
            yield Hop(segment=segment, first=first, count=stop - first, devices=part.devices, cost=cost)


def _cost(read_bytes: int, token: int, prompt: int) -> Cost:
    return Cost(read_bytes=read_bytes, token_s=token / TICKS_PER_S, prompt_s=prompt / TICKS_PER_S)


def _seen_bytes(item: AttentionWork, tokens: int) -> int:
    return item.token_bytes * (tokens if item.window is None else min(tokens, item.window))
