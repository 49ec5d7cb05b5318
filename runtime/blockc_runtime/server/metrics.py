"""Counters for operators: vLLM's nouns under ``blockc:``, by tenant and app.

In: what happened. Out: Prometheus text. Invariant: a tenant's view holds that tenant's samples
only, for load figures of all tenants together would tell of the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from blockc.plan import ExecutionPlan
from blockc_runtime.counts import Counts
from blockc_runtime.kv.pages import PageUsage
from blockc_runtime.memory import MemoryUse
from blockc_runtime.wire.messages import Loaded, Stats, StepLoad

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_LABELS = ("tenant", "app")
_MEMORY_PARTS: Final = ("runtime", "weights", "blocks", "sides", "kv", "workspace")
_TTFT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_E2E_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_RECENT = 256  # first tokens of an app


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """How the engine of a device is. ``groups``: the plan's KV groups that it has, in its order; None: as it counts."""

    device: str
    stats: Stats
    groups: tuple[int, ...] | None = None


@dataclass(slots=True)
class StepTotals:
    """Of all steps so far. Plain numbers, for whoever looks often."""

    steps: int = 0
    rows: int = 0
    tokens: int = 0
    launches: int = 0
    chains: int = 0


class AppMetrics:
    """One app's series, looked up once."""

    def __init__(self, metrics: Metrics, tenant: str, app: str) -> None:
        self.tenant, self.name = tenant, app
        self.ended = 0
        self.recent_ttft_s: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # when, and how long it took
        self.running = metrics.running.labels(tenant, app)
        self.waiting = metrics.waiting.labels(tenant, app)
        self.prompt_tokens = metrics.prompt_tokens.labels(tenant, app)
        self.generation_tokens = metrics.generation_tokens.labels(tenant, app)
        self._ttft_s = metrics.ttft_s.labels(tenant, app)
        self.tpot_s = metrics.tpot_s.labels(tenant, app)
        self.e2e_s = metrics.e2e_s.labels(tenant, app)
        self.cache_queries = metrics.cache_queries.labels(tenant, app)
        self.cache_hits = metrics.cache_hits.labels(tenant, app)
        self._finished = metrics.finished
        self._address = (tenant, app)

    def first_token(self, took_s: float, *, now_s: float) -> None:
        """Count a time to first token."""
        self._ttft_s.observe(took_s)
        self.recent_ttft_s.append((now_s, took_s))

    def finish(self, reason: str) -> None:
        """Count an ended request."""
        self.ended += 1
        self._finished.labels(*self._address, reason).inc()


class Growing:
    """A counter of what engines count since they began: a restart of an engine takes nothing back."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._seen: dict[tuple[str, tuple[str, ...]], float] = {}

    def observe(self, device: str, count: float, *labels: str) -> None:
        """Add what came since the last time from the engine of a device."""
        seen = self._seen.get((device, labels), 0)
        child = self._counter.labels(*labels) if labels else self._counter
        child.inc(count - seen if count >= seen else count)
        self._seen[device, labels] = count


class Metrics:
    """All series of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._apps: dict[tuple[str, str], AppMetrics] = {}
        self._groups_of: dict[str, set[str]] = {}  # those that are shown, by device
        self._sessions_of: dict[str, int] = {}
        self.totals = StepTotals()
        self.running = self._gauge("num_requests_running", "Requests that the engine has started")
        self.waiting = self._gauge("num_requests_waiting", "Requests that wait for their first row")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens taken on")
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated")
        self.cache_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up")
        self.cache_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the KV cache")
        self.finished = self._counter("request_success", "Ended requests", "finished_reason")
        self.ttft_s = self._histogram("time_to_first_token_seconds", "Until the first token", _TTFT_S)
        self.tpot_s = self._histogram(
            "time_per_output_token_seconds", "Per token after the first, mean of a request", _TPOT_S
        )
        self.e2e_s = self._histogram("e2e_request_latency_seconds", "Until the end", _E2E_S)
        self._rows = self._step_histogram("step_rows", "Rows in a step")
        self._launches = self._step_histogram("step_launches", "Launches in a step")
        self._chains = self._step_histogram("step_chains", "Distinct chains in a step")
        self.engine_restarts = Counter(
            "blockc:engine_restarts", "Times an engine was started again", registry=self._registry
        )
        self._pages = self._page_gauge("kv_pages", "KV pages of a group")
        self._free_pages = self._page_gauge("kv_pages_free", "KV pages that no running request holds")
        self._cached_pages = self._page_gauge("kv_pages_cached", "Those of them that hold what a prompt may begin with")
        self._saved_pages = self._page_gauge("kv_pages_saved", "KV pages more, if no two requests shared one")
        self._evictions = Growing(
            Counter("blockc:kv_page_evictions", "Cached pages that were given up", ("group",), registry=self._registry)
        )
        self._preemptions = Growing(
            Counter("blockc:num_preemptions", "Requests that gave their place back", registry=self._registry)
        )
        self._side_loads = Growing(
            Counter("blockc:side_loads", "Fine-tunes whose sides were put in a slot", registry=self._registry)
        )
        self._block_loads = Growing(
            Counter("blockc:block_loads", "Segments whose weights were read", registry=self._registry)
        )
        self._block_evictions = Growing(
            Counter("blockc:block_evictions", "Segments whose weights were let go", registry=self._registry)
        )
        self._residency_wait_s = Growing(
            Counter(
                "blockc:residency_wait_seconds",
                "What requests waited, each for itself, for fine-tunes that were not in memory",
                registry=self._registry,
            )
        )
        self._overlapped = Growing(
            Counter("blockc:steps_overlapped", "Steps that were issued while another ran", registry=self._registry)
        )
        self._waits = Growing(
            Counter(
                "blockc:step_waits",
                "Times that a step had to wait for the one before it",
                ("reason",),
                registry=self._registry,
            )
        )
        self._replays = Growing(
            Counter("blockc:launches_replayed", "Launches that were recorded graphs", registry=self._registry)
        )
        self._op_by_op = Growing(
            Counter(
                "blockc:launches_op_by_op",
                "Launches that were not, where graphs are used, and why",
                ("reason",),
                registry=self._registry,
            )
        )
        self._recorded = Growing(
            Counter("blockc:graphs_recorded", "Graphs that were needed for the first time", registry=self._registry)
        )
        self._recording_s = Growing(
            Counter("blockc:recording_seconds", "What everybody waited for that", registry=self._registry)
        )
        self._sessions = Gauge("blockc:sessions_paused", "Sessions whose KV is kept", registry=self._registry)
        self._sessions_lost = Growing(
            Counter(
                "blockc:sessions_lost", "Sessions whose kept KV went with a plan or worker", registry=self._registry
            )
        )
        self._predicted = self._memory_gauge("memory_predicted_bytes", "What the plan says; of runtime: the reserve")
        self._measured = self._memory_gauge("memory_measured_bytes", "What the engine holds; of workspace: the most")
        self._swaps = Counter("blockc:plan_swaps", "Plans that were swapped in", ("outcome",), registry=self._registry)
        self._swap_bytes = Counter(
            "blockc:plan_swap_bytes", "Weights and fine-tunes of plans swapped in", ("part",), registry=self._registry
        )
        self._swap_pause_s = Gauge(
            "blockc:plan_swap_pause_seconds", "How long the last swap held new requests back", registry=self._registry
        )
        self._swap_turn_s = Gauge(
            "blockc:plan_swap_longest_turn_seconds", "The longest turn of the engine meanwhile", registry=self._registry
        )
        self._plan = Gauge("blockc:plan_info", "1 for the plan in force", ("digest",), registry=self._registry)
        self._engine_requests = Gauge(
            "blockc:engine_requests", "Unfinished requests that the engine of a device has", ("device",),
            registry=self._registry,
        )  # fmt: skip
        self.engine_up = Gauge(
            "blockc:engine_up", "1 while the engine of a device is serving", ("device",), registry=self._registry
        )

    def app(self, tenant: str, app: str) -> AppMetrics:
        """Return the series of ``tenant/app``; they exist from the first request on."""
        known = self._apps.get((tenant, app))
        if known is None:
            known = self._apps[tenant, app] = AppMetrics(self, tenant, app)
        return known

    @property
    def apps(self) -> tuple[AppMetrics, ...]:
        """Those that have been asked so far."""
        return tuple(self._apps.values())

    def observe_step(self, load: StepLoad) -> None:
        """Count a step."""
        totals = self.totals
        totals.steps += 1
        totals.rows += load.rows
        totals.tokens += load.tokens
        totals.launches += load.launches
        totals.chains += load.chains
        self._rows.observe(load.rows)
        self._launches.observe(load.launches)
        self._chains.observe(load.chains)

    def observe_stats(self, engines: Sequence[EngineStats]) -> None:
        """Take in how engines are; those that did not answer are as they were."""
        for own in engines:
            self._engine_requests.labels(own.device).set(own.stats.unfinished)
            self._observe_pages(own)
            self._observe_counts(own.device, own.stats.counts)
            self._sessions_of[own.device] = own.stats.sessions
            self._sessions_lost.observe(own.device, own.stats.sessions_lost)
            self._observe_memory(own.device, own.stats.memory)
        self._sessions.set(sum(self._sessions_of.values()))

    def forget(self, device: str) -> None:
        """There is no engine of a device any more, or it is called otherwise."""
        self._show_pages(device, {})
        self._sessions_of.pop(device, None)
        for gauge in (self.engine_up, self._engine_requests):
            gauge.remove(device)
        for part in _MEMORY_PARTS:
            self._measured.remove(device, part)

    def _observe_pages(self, own: EngineStats) -> None:
        groups = range(len(own.stats.pages)) if own.groups is None else own.groups
        # While a plan is swapped the engine may count by another one.
        self._show_pages(own.device, dict(zip(map(str, groups), own.stats.pages, strict=False)))

    def _show_pages(self, device: str, groups: Mapping[str, PageUsage]) -> None:
        """The pages of each KV group of the plan in force. What only a cache holds is free."""
        gauges = (self._pages, self._free_pages, self._cached_pages, self._saved_pages)
        for group in self._groups_of.get(device, set()) - groups.keys():
            for gauge in gauges:
                gauge.remove(device, group)
        self._groups_of[device] = set(groups)
        for group, pages in groups.items():
            counts = (pages.total, pages.total - pages.held, pages.idle, pages.saved)
            for gauge, count in zip(gauges, counts, strict=True):
                gauge.labels(device, group).set(count)
            self._evictions.observe(device, pages.evicted, group)

    def _observe_counts(self, device: str, counts: Counts) -> None:
        """What was counted since the engine began."""
        self._preemptions.observe(device, counts.preemptions)
        self._side_loads.observe(device, counts.side_loads)
        self._block_loads.observe(device, counts.block_loads)
        self._block_evictions.observe(device, counts.block_evictions)
        self._residency_wait_s.observe(device, counts.residency_wait_s)
        self._overlapped.observe(device, counts.overlapped)
        for reason, count in counts.waits.items():
            self._waits.observe(device, count, reason)
        self._replays.observe(device, counts.replays)
        self._recorded.observe(device, counts.recorded)
        self._recording_s.observe(device, counts.recording_s)
        for reason, count in counts.op_by_op.items():
            self._op_by_op.observe(device, count, reason)

    def predict_memory(self, plan: ExecutionPlan) -> None:
        """Take in what a plan says of its devices; the interpreter and its libraries live in their reserve."""
        self._predicted.clear()
        for entry in plan.memory:
            device = plan.devices[entry.device].address
            for part in _MEMORY_PARTS:
                planned = "reserve" if part == "runtime" else part
                self._predicted.labels(device, part).set(getattr(entry, f"{planned}_bytes"))

    def show_plan(self, digest: str) -> None:
        """Name the plan in force by the SHA-256 of its file."""
        self._plan.clear()
        self._plan.labels(digest).set(1)

    def observe_swap(self, loaded: Loaded | None, pause_s: float) -> None:
        """Count a swap; None: it was refused."""
        self._swaps.labels("refused" if loaded is None else "swapped").inc()
        if loaded is not None:
            self._swap_bytes.labels("kept").inc(loaded.kept_bytes)
            self._swap_bytes.labels("loaded").inc(loaded.loaded_bytes)
            self._swap_pause_s.set(pause_s)
            self._swap_turn_s.set(loaded.longest_turn_s)

    def _observe_memory(self, device: str, use: MemoryUse | None) -> None:
        """What the engine holds."""
        for part in _MEMORY_PARTS if use is not None else ():
            self._measured.labels(device, part).set(getattr(use, f"{part}_bytes"))

    def text(self, tenant: str | None) -> bytes:
        """Return the exposition; ``tenant`` None: everything."""
        return generate_latest(_View(self._registry, tenant))

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"blockc:{name}", text, _LABELS, registry=self._registry)

    def _page_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"blockc:{name}", text, ("device", "group"), registry=self._registry)

    def _memory_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"blockc:{name}", text, ("device", "part"), registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"blockc:{name}", text, (*_LABELS, *labels), registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"blockc:{name}", text, _LABELS, buckets=buckets, registry=self._registry)

    def _step_histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"blockc:{name}", text, buckets=_COUNTS, registry=self._registry)


class _View(CollectorRegistry):
    """A registry as one tenant may see it, or all of it; without the times of creation."""

    def __init__(self, registry: CollectorRegistry, tenant: str | None) -> None:
        super().__init__()
        self._whole = registry
        self._tenant = tenant

    def collect(self) -> Iterator[Metric]:
        """Yield the families that hold samples to be seen."""
        for metric in self._whole.collect():
            samples = [
                sample
                for sample in metric.samples
                if self._tenant in (None, sample.labels.get("tenant")) and not sample.name.endswith("_created")
            ]
            if samples:
                view = Metric(metric.name, metric.documentation, metric.type)
                view.samples = samples
                yield view
