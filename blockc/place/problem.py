"""What placement decides upon, as plain data: nothing here knows of specs, graphs or plans.

Indices count into the problem's own tuples. Bytes come from `blockc.ir.layout`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, Literal

from blockc.cost import AttentionWork, DeviceRates, PlanWork, cell_rates
from blockc.cost.work import BlockWork
from blockc.diag import Span
from blockc.ir.layout import ResidentTensor

DEFAULT_OBJECTIVE: Final = ("devices", "peak_load")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceDevice:
    """A device. Devices of equal kind, memory, reserve and price are interchangeable.

    ``headroom_bytes``: what the policy leaves free beside the reserve.
    """

    address: str
    kind: str
    memory_bytes: int
    reserve_bytes: int
    span: Span | None = None
    headroom_bytes: int = 0
    price_per_hour: Fraction | None = None

    @property
    def node(self) -> str:
        """Its machine."""
        return self.address.split("/")[0]

    @property
    def offered_bytes(self) -> int:
        """What a plan may use."""
        return self.memory_bytes - self.reserve_bytes - self.headroom_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceTurn:
    """What a segment brings when its weights take turns in memory: the tensors that no other segment binds.

    ``reading_bytes``: what reading it takes beside them. ``residency``: as the spec says; None: placement decides.
    """

    tensors: frozenset[ResidentTensor]
    reading_bytes: int
    residency: Literal["stream", "cold"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSegment:
    """What a segment keeps resident wherever one of its chains runs. ``activation_bytes``: of its hungriest block.

    ``turn``: those of its tensors that may take turns; None: all of them stay.
    """

    tensors: frozenset[ResidentTensor]
    activation_bytes: int
    turn: PlaceTurn | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceBlock:
    """One block of a path: what a stage of a pipeline takes one after the other.

    ``groups``: the KV group of each of its attentions; ``state_bytes``: of a token's hidden states, as it gets them.
    ``work``: what it reads and computes, ``attention``: beside that; None and empty where nothing is expected.
    """

    digest: str
    tensors: frozenset[ResidentTensor]
    activation_bytes: int
    groups: tuple[int, ...]
    state_bytes: int
    work: BlockWork | None = None
    attention: tuple[AttentionWork, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceGroup:
    """A KV group: the bytes of one page in all its layers. Devices that run it together split its heads."""

    page_bytes: int
    kv_heads: int
    page_tokens: int
    layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacePart:
    """What one app expects of its chain. ``priority``: who has the lowest is served first where not all can be."""

    app: str
    priority: int
    rate_rps: Fraction
    prompt_tokens: int
    output_tokens: int
    tpot_s: Fraction | None = None
    ttft_s: Fraction | None = None
    span: Span | None = None
    slo_span: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceLoad:
    """What the apps of a chain expect together: lengths are means, targets the tightest of any.

    ``tpot_s``, ``ttft_s`` None: nobody has such a target. ``parts``: of each app, as far as they are told apart.
    """

    rate_rps: Fraction
    prompt_tokens: Fraction
    output_tokens: Fraction
    tpot_s: Fraction | None = None
    ttft_s: Fraction | None = None
    span: Span | None = None
    slo_span: Span | None = None
    parts: tuple[PlacePart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceSpeed:
    """How fast devices of a kind are, one alone. ``link_bytes_per_s`` None: they cannot work together."""

    rates: DeviceRates
    link_bytes_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceRule:
    """A line of the spec that says where chains may run.

    ``pin``: ``chains`` run on ``devices`` and nowhere else. ``apart``: no two of them share a device. ``alone``: they
    share devices with each other only. ``replicas``: each of them runs in at least ``count`` instances, ``nodes``: on
    at least ``count`` nodes. ``text``: what the spec says. ``conflict``: why it can never hold.
    """

    kind: Literal["pin", "apart", "alone", "replicas", "nodes"]
    chains: tuple[int, ...]
    devices: frozenset[int] = frozenset()
    count: int = 1
    text: str
    span: Span | None = None
    conflict: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceChain:
    """A model version. ``label``: how the spec calls it; ``load``: what is expected of it, if that is known.

    ``bank``: number of the bank whose slots it shares with chains alike; ``side_bytes`` are then those of a slot. None:
    without sides, or where those of all chains stay resident. ``blocks``: of its path, in order; empty: it cannot be
    divided into stages.
    """

    label: str
    segments: tuple[int, ...]
    groups: tuple[int, ...]
    side_bytes: int
    max_model_len: int
    load: PlaceLoad | None = None
    span: Span | None = None
    bank: int | None = None
    blocks: tuple[PlaceBlock, ...] = ()

    @property
    def rate_rps(self) -> Fraction | None:
        """Expected requests of all its apps, if known."""
        return None if self.load is None else self.load.rate_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeCell:
    """A cell of an earlier plan, with its chains that are still there and the part of their requests that it had."""

    devices: tuple[int, ...]
    chains: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforePipeline:
    """A pipeline of an earlier plan, with its chains that are still there.

    ``begins``: the first block of each stage, and their number at the end. ``copies``: the devices of each, stage by
    stage; None: a device of the stage is gone.
    """

    chains: tuple[int, ...]
    begins: tuple[int, ...]
    copies: tuple[tuple[tuple[int, ...] | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceBefore:
    """What an earlier plan has where. By device: digests of tensors, chains, and how many devices its cell has.

    ``parts``: the first block of a device's stage and the first after it; a device that is not named had all blocks.
    """

    cells: tuple[BeforeCell, ...]
    tensors: Mapping[int, frozenset[str]]
    chains: Mapping[int, frozenset[int]]
    widths: Mapping[int, int]
    pipelines: tuple[BeforePipeline, ...] = ()
    parts: Mapping[int, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceExpect:
    """An `expect { memory_below = ... }`: what a plan fills of every device, its reserve left out."""

    memory_below_bytes: int
    span: Span | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceProblem:
    """The whole problem.

    ``pm_bytes``, ``ps_bytes``, ``ours_bytes``: weights with every app's model on its own, with every full model on its
    own and adapters on it, and with every tensor once. ``spare_bytes``: by how much each chain's hungriest block
    exceeds those with attention. ``cluster_span``: where the devices are declared. ``sides_limit_bytes``: what sides
    may take of a device; those that do not fit wait in the zoo. ``blocks_limit_bytes``: the same of blocks that may
    take turns; ``blocks_reading_bytes``: what reading them takes beside them, where some have to; ``host_limit_bytes``:
    for those that wait in a host's memory. ``work`` and ``speeds`` (by kind of device) say what traffic takes of a
    device; without them placement goes by bytes. ``headroom``: part of every device's time that is left free.
    ``objective``: what there is to be little of, first things first, with ``devices`` or ``cost`` among it. ``sheds``:
    where not all load fits, that of the apps with the highest ``priority`` is left out; None: what is left out is known
    already. ``gap``: from which distance to the bound on a plan is good enough. ``before``: an earlier plan, of
    which as much as ``move_budget_bytes`` allow may be changed for fewer devices; None: as much as that takes.
    ``stages``: into how many every model is divided; 0: only what fits no cell, into as few as can be; None: nothing.
    ``node_bytes_per_s`` and ``node_latency_s``: of what travels between nodes; None: nothing does.
    """

    devices: tuple[PlaceDevice, ...]
    segments: tuple[PlaceSegment, ...]
    groups: tuple[PlaceGroup, ...]
    chains: tuple[PlaceChain, ...]
    max_rows: int
    pm_bytes: int
    ps_bytes: int
    ours_bytes: int
    solver_time_limit_s: Fraction = Fraction(60)
    seed: int = 7
    expect: tuple[PlaceExpect, ...] = ()
    cluster_span: Span | None = None
    spare_bytes: int = 0
    sides_limit_bytes: int | None = None
    sides_limit_span: Span | None = None
    blocks_limit_bytes: int | None = None
    blocks_limit_span: Span | None = None
    blocks_reading_bytes: int = 0
    host_limit_bytes: int | None = None
    max_batched_tokens: int = 2048
    work: PlanWork | None = None
    speeds: Mapping[str, PlaceSpeed] = field(default_factory=dict)
    rules: tuple[PlaceRule, ...] = ()
    headroom: Fraction = Fraction(0)
    headroom_span: Span | None = None
    max_rows_span: Span | None = None
    gap: Fraction = Fraction(0)
    objective: tuple[str, ...] = DEFAULT_OBJECTIVE
    sheds: bool | None = False
    before: PlaceBefore | None = None
    move_budget_bytes: int | None = None
    stages: int | None = 0
    stages_span: Span | None = None
    node_bytes_per_s: float | None = None
    node_latency_s: float = 0.0

    def rates_of(self, kind: str, width: int) -> DeviceRates | None:
        """Rates of so many devices of a kind together; None where nothing is known, or they cannot be a cell."""
        speed = self.speeds.get(kind)
        if speed is None or (width > 1 and speed.link_bytes_per_s is None):
            return None
        return cell_rates(speed.rates, width=width, link_bytes_per_s=speed.link_bytes_per_s)
