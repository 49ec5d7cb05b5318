"""What the scheduler must know of a plan, without torch and without the plan's file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blockc.plan import ExecutionPlan, InstanceEntry, reads_whole_texts
from blockc_runtime.kv.carry import group_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimits:
    """One KV group on one instance."""

    pages: int
    page_tokens: int
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """A segment whose weights are in memory by turns: their bytes, and how often they are expected to be wanted.

    ``from_host``: they are in the host's memory meanwhile, and not in the zoo.
    """

    nbytes: int
    uses_rps: float = 0.0
    from_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLimits:
    """A chain: its KV groups in layer order with the domain of each, its segments in order, its instance.

    ``virtual_tokens`` stand before every prompt and count toward ``max_model_len``. ``bank``: whose slots its sides
    take turns in; None: they are always in memory. ``blocks``: how many each of its segments has. ``draws``: tokens; if
    not, a request ends with what its text yields, or if there are ``token_classes`` each of its tokens. ``whole``: a
    text has to stand in one step.
    """

    groups: tuple[int, ...]
    domains: tuple[str, ...]
    segments: tuple[int, ...]
    instance: int
    max_model_len: int
    virtual_tokens: tuple[int, ...] = ()
    bank: int | None = None
    blocks: tuple[int, ...] = ()
    draws: bool = True
    token_classes: int = 0
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """Everything the scheduler decides by.

    ``prefill_parts``: in up to so many steps a chunk of a prompt goes through the layers. ``turns``: segments whose
    weights are in memory by turns, at once no more than ``room_bytes`` of them. ``overlaps``: a request that is
    in a step in flight may have a row in the next one, fed by that step.
    """

    groups: tuple[GroupLimits, ...]
    chains: tuple[ChainLimits, ...]
    segment_count: int
    max_batched_tokens: int
    max_rows: int
    tenants: tuple[int, ...]  # for each app of the plan: index of its tenant
    weights: tuple[float, ...]  # for each tenant
    ttft_targets_s: tuple[float | None, ...] = ()  # for each app of the plan; empty: nobody has one
    bank_slots: Mapping[int, int] = field(default_factory=dict)  # of the banks that chains name
    prefill_parts: int = 1
    turns: Mapping[int, TurnLimits] = field(default_factory=dict)
    room_bytes: int = 0
    overlaps: bool = False

    @property
    def step_work(self) -> int:
        """What a step computes, in tokens that pass all layers."""
        return max(1, self.max_batched_tokens // self.prefill_parts)


def engine_limits(plan: ExecutionPlan) -> EngineLimits:
    """Derive the limits of a plan whose chains each have one instance on one route."""
    tenants = sorted({app.tenant for app in plan.apps})
    weights = {app.tenant: app.weight for app in plan.apps}
    pages = group_pages(plan)
    slots = {bank: count for instance in plan.instances for bank, count in instance.side_slots.items()}
    route_of = {route.chain: route.alternatives[0][0] for route in plan.routes}
    return EngineLimits(
        groups=tuple(
            GroupLimits(pages=pages[index], page_tokens=group.page_tokens, window=group.window)
            for index, group in enumerate(plan.kv_groups)
        ),
        chains=tuple(
            ChainLimits(
                groups=tuple(kv.group for kv in chain.kv),
                domains=tuple(kv.domain for kv in chain.kv),
                segments=chain.segments,
                instance=route_of[index],
                max_model_len=chain.max_model_len,
                virtual_tokens=chain.virtual_tokens,
                bank=chain.bank if chain.bank in slots else None,
                blocks=tuple(plan.segments[segment].count for segment in chain.segments),
                draws=chain.vector_width == 0,
                token_classes=len(chain.labels) if chain.each_token else 0,
                whole=reads_whole_texts(plan, index),
            )
            for index, chain in enumerate(plan.chains)
        ),
        segment_count=len(plan.segments),
        max_batched_tokens=plan.batching.max_batched_tokens,
        max_rows=plan.batching.max_rows,
        tenants=tuple(tenants.index(app.tenant) for app in plan.apps),
        weights=tuple(weights[tenant] for tenant in tenants),
        ttft_targets_s=tuple(app.ttft_s for app in plan.apps),
        bank_slots=slots,
        prefill_parts=plan.batching.prefill_parts,
        overlaps=plan.batching.overlaps,
        turns={number: turn for instance in plan.instances for number, turn in turn_limits(instance).items()},
        room_bytes=sum(instance.room_bytes for instance in plan.instances),
    )


def turn_limits(instance: InstanceEntry) -> dict[int, TurnLimits]:
    """Those of one instance."""
    return {
        turn.segment: TurnLimits(nbytes=turn.nbytes, uses_rps=turn.uses_rps, from_host=turn.kept == "host")
        for turn in instance.turns
    }
