"""Small fleets to simulate: the limits of the scheduler's own tests, with prices."""

from __future__ import annotations

from dataclasses import replace

from blockc.cost import AttentionWork, ChainWork, DeviceRates, PlanWork, SegmentWork, StepPricer
from blockc.simulate.fleet import Fleet, FleetApp, FleetInstance
from blockc_runtime.limits import EngineLimits, TurnLimits
from blockc_runtime.router import Network
from tests.runtime.scheduler.harness import limits

RATES = DeviceRates(
    flops_per_s=1e9, bytes_per_s=1e8, block_s=1e-5, row_s=1e-6, step_s=1e-4, read_bytes_per_s=1e6, fill_bytes_per_s=1e7
)


APPS = ((0, 0), (1, 1), (2, 2), (3, 0), (4, 1))


def taking_turns(own: EngineLimits, slots: int) -> EngineLimits:
    """The fine-tunes of chains 1 to 4 take turns in so many slots."""
    chains = tuple(replace(chain, bank=0 if 1 <= index <= 4 else None) for index, chain in enumerate(own.chains))
    return replace(own, chains=chains, bank_slots={0: slots})


def in_a_room(own: EngineLimits, room: str) -> EngineLimits:
    """The weights of segments 1, 2, 4 and 5 take turns, in a ``tight`` room, which one chain fills, or a ``wide``."""
    turns = {
        segment: TurnLimits(nbytes=nbytes, from_host=segment == 4)
        for segment, nbytes in {1: 4000, 2: 9000, 4: 3000, 5: 1000}.items()
    }
    return replace(own, turns=turns, room_bytes={"tight": 9000, "wide": 14000}[room])


def segment(**changed) -> SegmentWork:
    values = {
        "blocks": 2, "read_bytes": 100_000, "row_read_bytes": 0, "token_flops": 200_000, "row_flops": 0, "reduces": 0,
        "reduce_bytes": 0,
    }  # fmt: skip
    return SegmentWork(**{**values, **changed})


def work_of(own: EngineLimits) -> PlanWork:
    chains = tuple(
        ChainWork(
            segments=chain.segments,
            attention=tuple(
                AttentionWork(window=own.groups[group].window, token_bytes=512, pair_flops=4096)
                for group in chain.groups
            ),
            side_bytes=1000 * index,
            side_token_flops=1000 * index,
        )
        for index, chain in enumerate(own.chains)
    )
    head = segment(read_bytes=0, row_read_bytes=50_000, token_flops=0, row_flops=50_000)
    return PlanWork(segments=(*(segment() for _ in range(own.segment_count - 1)), head), chains=chains)


def fleet(own: EngineLimits | None = None, *, copies: int = 1, network=None, apps=APPS) -> Fleet:
    """``apps``: (chain, tenant), at most the six that the limits know. ``copies`` of one instance serve all of them."""
    own = own or limits()
    pricer = StepPricer(work_of(own), RATES)
    return Fleet(
        label="ours",
        apps=tuple(
            FleetApp(
                address=f"tenant{own.tenants[index]}/app{index}",
                tenant=f"tenant{own.tenants[index]}",
                weight=1.0,
                chain=chain,
                isolation_group=f"group{tenant}",
                instances=tuple(range(copies)),
                shares=(1.0,) * copies,
            )
            for index, (chain, tenant) in enumerate(apps)
        ),
        instances=tuple(
            FleetInstance(name=f"n/d{index}", width=1, limits=own, rates=RATES, pricer=pricer)
            for index in range(copies)
        ),
        devices=copies,
        weights_bytes=0,
        network=network or Network(nodes=("n",) * copies),
    )
