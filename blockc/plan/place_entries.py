"""Tables of a plan that say where it is computed: devices, what runs on them, and how that was found."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from blockc.plan.entry import Entry


class DeviceEntry(Entry):
    """A device. ``address`` is node/device."""

    address: str
    node: str
    kind: str
    memory_bytes: int
    reserve_bytes: int


class LinkEntry(Entry):
    """A link between two devices (indices into ``devices``).

    A cluster's links of one sort are alike: one that is named within a node stands for all nodes, one between two nodes
    for any two. Of several the slowest counts.
    """

    source: int
    target: int
    bytes_per_s: int
    latency_s: float


class LoadEntry(Entry):
    """What an instance is expected to carry, by the cost model that placed it.

    ``cadence_s``: each of its segments runs once in it; None: nothing is expected. ``traffic`` and ``sweeps`` are parts
    of its time, of which it may be busy for ``limit``. ``rows``: requests that decode at once, on average; ``batches``:
    segment -> tokens of a launch that decodes, a power of two.
    """

    cadence_s: float | None
    traffic: float
    sweeps: float
    limit: float
    rows: float
    batches: dict[int, int]


class TurnEntry(Entry):
    """A segment whose own weights are read when a request wants them, and go when others' are wanted more.

    Its own are the tensors that no other segment binds (`blockc.ir.turns`): ``nbytes`` of them on each device.
    ``kept``: where they are meanwhile, in the zoo or, once they have been read, in the host's memory. ``uses_rps``:
    requests a second that are expected to want them; 0: nobody has said.
    """

    segment: int
    nbytes: int
    kept: Literal["zoo", "host"]
    uses_rps: float = 0.0


class StageEntry(Entry):
    """Blocks ``first .. first + count - 1`` of each chain of an instance, on devices that split each of them."""

    first: int  # occurrence index, as in `SegmentEntry`
    count: int
    devices: tuple[int, ...]


class ChainPricesEntry(Entry):
    """A chain on an instance. ``set_up_s``: of its own, once a step with rows of it. ``prompt_s``: a prompt token.

    ``row_s``: a decode row. ``kv_bytes``: of one token's keys and values.
    """

    set_up_s: float
    prompt_s: float
    row_s: float
    kv_bytes: int


class PricesEntry(Entry):
    """What an instance is expected to take, for whoever chooses between several (`blockc.cost.instance_prices`).

    ``step_s``: every step. ``segment_s``: a launch of each of its segments, however few rows pass it. ``chains``: by
    index. ``cache_tokens``: how many tokens' KV it can hold, of the chain of which these are most.
    """

    step_s: float
    segment_s: dict[int, float]
    chains: dict[int, ChainPricesEntry]
    cache_tokens: int


class InstanceEntry(Entry):
    """A run of segments on devices, with the pages it owns of each KV group.

    ``stages``: a pipeline. Its devices hold parts of the path one after the other, and of every page the layers of
    their own part; hidden states go from stage to stage. Empty: all devices split all blocks.
    ``side_slots``: so many fine-tunes of a bank have their sides in memory at once; a bank that is not named has a slot
    for each of its own. ``turns``: segments whose weights are in memory by turns, at once no more than ``room_bytes``
    of them on each device; those of all others always are. ``prices`` None: no request has a choice, or an
    instance is on several devices of which nothing is known.
    """

    segments: tuple[int, ...]
    devices: tuple[int, ...]
    chains: tuple[int, ...]
    max_rows: int
    kv_pages: dict[int, int]  # KV group -> pages
    side_slots: dict[int, int] = Field(default_factory=dict)  # bank -> slots
    turns: tuple[TurnEntry, ...] = ()
    room_bytes: int = 0
    load: LoadEntry | None = None  # None: placed by bytes; of a pipeline that of its busiest stage
    stages: tuple[StageEntry, ...] = ()
    prices: PricesEntry | None = None

    @property
    def width(self) -> int:
        """Devices that split one block."""
        return len(self.stages[0].devices if self.stages else self.devices)

    def stage_of(self, device: int) -> StageEntry | None:
        """What a device holds of a pipeline; None: it has a share of everything."""
        return next((stage for stage in self.stages if device in stage.devices), None)


class EdgeEntry(Entry):
    """Hidden states ``[T, hidden]`` going from one instance to another."""

    source: int
    target: int


class RouteEntry(Entry):
    """How a chain may travel: alternatives, each a sequence of instances.

    ``weights``: which part of its requests goes each way, adding up to 1; empty where nobody has said. ``ttft_s`` and
    ``tpot_s``: the 95th percentiles that are expected on the slowest of them; None: nothing is expected. ``readers``:
    those of the instances that read prompts, for the others, which answer; empty: each does both.
    """

    chain: int
    alternatives: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] = ()
    ttft_s: float | None = None
    tpot_s: float | None = None
    readers: tuple[int, ...] = ()

    @property
    def shares(self) -> dict[int, float]:
        """By instance that a way begins at: the part of the requests that goes there; equal where nobody has said."""
        given = self.weights or (1 / len(self.alternatives),) * len(self.alternatives)
        return {way[0]: weight for way, weight in zip(self.alternatives, given, strict=True)}


class AttainedEntry(Entry):
    """Of simulated requests the part that is within all targets, and 95th percentiles of all."""

    in_time: float
    ttft_p95_s: float
    tpot_p95_s: float
    e2e_p95_s: float


class RolesEntry(Entry):
    """What it brings that some instances read prompts for others (`RouteEntry.readers`), simulated.

    ``requests``: of the spec's traffic, in ``seconds``. ``shared``: as if every instance did both.
    """

    readers: tuple[int, ...]
    requests: int
    seconds: float
    apart: AttainedEntry
    shared: AttainedEntry


class MemoryEntry(Entry):
    """Bytes on one device, by the same `Layout` that the runtime allocates by.

    ``blocks_bytes``: the room of segments that take turns, and what reading one of them takes beside it.
    """

    device: int
    weights_bytes: int
    sides_bytes: int
    kv_bytes: int
    workspace_bytes: int
    reserve_bytes: int
    capacity_bytes: int
    blocks_bytes: int = 0

    @property
    def used_bytes(self) -> int:
        """All parts together, the reserve included."""
        held = self.weights_bytes + self.blocks_bytes + self.sides_bytes
        return held + self.kv_bytes + self.workspace_bytes + self.reserve_bytes


class RuleEntry(Entry):
    """A line of the spec that says where chains may run: see `blockc.place.PlaceRule`. Nothing that serves reads it.

    ``chains`` are named in it; ``devices``: those of a pin; ``count``: so many instances, or nodes, at least.
    """

    kind: Literal["pin", "apart", "alone", "replicas", "nodes"]
    text: str
    chains: tuple[int, ...]
    devices: tuple[int, ...] = ()
    count: int = 1


class SearchEntry(Entry):
    """What was known after ``units`` of the solver's deterministic time. ``value`` None: no plan yet."""

    units: float
    value: float | None
    bound: float


class SolverEntry(Entry):
    """How good the placement is and how it was found.

    ``objective``: what there is to be little of, first things first; ``values`` has what the plan has of each: devices,
    money an hour (``cost``), bytes a second between devices of a cell (``communication``), resident bytes (``memory``),
    and of the busiest instance the part of its time (``peak_load``), or of what its targets allow (``slo``). ``value``
    and ``bound`` are of the first. ``bound_kind``: what proves the bound: the sum of bytes (``bytes``), every load and
    sweep where it is cheapest (``closed form``), counts of cells by type (``counts``), the exact model (``flat``), or
    the least of pipelines and of all else together (``stages``).
    """

    objective: tuple[str, ...]
    value: float
    values: tuple[float, ...] = ()  # empty where only the first is known
    bound: float
    gap: float
    status: str
    seed: int
    solver: str
    bound_kind: Literal["bytes", "closed form", "counts", "flat", "stages"] = "bytes"
    history: tuple[SearchEntry, ...] = ()
    moved_bytes: int | None = None  # weights to load where the plan before had others; None: there was none

    @property
    def goal(self) -> str:
        """What ``value`` and ``bound`` are of."""
        return self.objective[0] if self.objective else "devices"
