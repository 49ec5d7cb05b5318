"""Real models where steps overlap: each request says what it says one step at a time. Float32."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest

from blockc.plan import ExecutionPlan
from blockc.spec.deployment import Policy
from blockc.zoo import Zoo
from blockc_runtime.executor.torch_ import TorchExecutor
from blockc_runtime.kv.index import KvIndex
from blockc_runtime.limits import engine_limits
from blockc_runtime.request import EndEvent, Event, Request, Sampling, Steering, TokensEvent
from blockc_runtime.scheduler import Gauges, Scheduler
from blockc_runtime.step import Step
from tests.support.adapters import save_lora
from tests.support.deployments import deployment
from tests.support.fine_tunes import save_full
from tests.support.serving import Compiled, compiled
from tests.support.tiny_models import save_model

# Tokens that follow from a row's own logits alone: the host is not asked for any.
ALONE = (Sampling(), Sampling(temperature=0.9, seed=5), Sampling(temperature=2.0, seed=9))
SAMPLINGS = (
    Sampling(),
    Sampling(temperature=0.9, seed=5),
    Sampling(temperature=1.3, seed=6, top_p=0.8, logprobs=2),
    Sampling(temperature=0.7, seed=7, top_k=20, min_p=0.01),
    Sampling(steering=Steering(repetition_penalty=1.8, presence_penalty=0.6)),
    Sampling(temperature=0.8, seed=8, steering=Steering(frequency_penalty=1.0, logit_bias=((7, 4.0), (9, -4.0)))),
)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def fleet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A base, two LoRAs on it and a checkpoint with its top layer changed; the second model has a window."""
    root: Path = tmp_path_factory.mktemp(request.param)
    base = save_model(request.param, root / "base")
    some = {"target_modules": ["q_proj", "v_proj"]}
    save_lora(base, root / "one", seed=1)
    save_lora(base, root / "two", seed=2, r=12, **some)
    save_full(base, root / "top", only="layers.1.")
    fine_tunes = {name: ("base", root / name) for name in ("one", "two", "top")}
    policy = Policy(max_rows=6, max_batched_tokens=48, overlap="on")
    apps = {"acme": {"base": "base", "one": "one"}, "globex": {"two": "two", "top": "top"}}
    return compiled(deployment(root / "base", fine_tunes, apps=apps, policy=policy), root / "zoo")


def served(
    plan: ExecutionPlan,
    zoo: Zoo,
    requests: list[Request],
    *,
    overlaps: bool,
    parts: int = 1,
    runs_ahead: bool | None = None,
) -> tuple[dict[str, list[Event]], Gauges]:
    """What each request is told, in order."""
    batching = plan.batching.model_copy(update={"overlaps": overlaps, "prefill_parts": parts})
    own = plan.model_copy(update={"batching": batching})
    limits = engine_limits(own)
    kv = KvIndex(limits)
    scheduler = Scheduler(limits, kv)
    executor = TorchExecutor(own, zoo, device=own.target, runs_ahead=runs_ahead)
    told: dict[str, list[Event]] = {request.id: [] for request in requests}
    waiting, flights = deque(requests), deque[Step]()
    while waiting or scheduler.has_work:
        for _ in range(min(2, len(waiting))):
            scheduler.admit(waiting.popleft())
        step = scheduler.schedule(0.0)
        if step is not None:
            executor.submit(step)
            flights.append(step)
        while len(flights) > (step is not None and overlaps):
            for event in scheduler.complete(flights.popleft(), executor.collect(), 0.0):
                told[event.request].append(event)
        kv.check_integrity()
    executor.close()
    assert all(usage.held == 0 for usage in kv.usage())
    return told, scheduler.gauges()


def tokens_of(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, TokensEvent) for token in event.tokens]


def some_requests(plan: ExecutionPlan, samplings: Sequence[Sampling]) -> list[Request]:
    rng = random.Random(11)
    return [
        Request(
            id=f"r{number}", app=number % len(plan.apps), chain=plan.apps[number % len(plan.apps)].chain,
            isolation_group="g", prompt=tuple(rng.randrange(3, 90) for _ in range(rng.choice([1, 5, 17, 60]))),
            emitted=0, max_tokens=rng.randint(1, 12), stop_token_ids=(),
            sampling=samplings[number % len(samplings)],
            prompt_logprobs=1 if number % 7 == 3 and samplings is SAMPLINGS else None,
        )
        for number in range(20)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "runs_ahead", "samplings"),
    [(1, False, SAMPLINGS), (4, False, SAMPLINGS), (1, True, SAMPLINGS), (4, True, SAMPLINGS[:2]), (1, True, ALONE)],
)
def test_requests_say_what_they_say_one_step_at_a_time(
    fleet: Compiled, parts: int, runs_ahead: bool, samplings: Sequence[Sampling]
) -> None:
    """With steps in a thread, and queued by a host that runs ahead, which feeds rows where the logits are."""
    requests = some_requests(fleet.plan, samplings)
    plain, _ = served(fleet.plan, fleet.zoo, requests, overlaps=False, parts=parts)
    rng = random.Random(12)
    stopped = [
        request if rng.random() < 0.4 else _with_stop(request, rng.choice(tokens_of(plain[request.id])))
        for request in requests
    ]
    plain, _ = served(fleet.plan, fleet.zoo, stopped, overlaps=False, parts=parts)
    found, gauges = served(fleet.plan, fleet.zoo, stopped, overlaps=True, parts=parts, runs_ahead=runs_ahead)
    for request in stopped:
        assert tokens_of(found[request.id]) == tokens_of(plain[request.id]), request
        ends = [event for told in (found, plain) for event in told[request.id] if isinstance(event, EndEvent)]
        assert [end.reason for end in ends] == [ends[0].reason] * 2
    assert {event.reason for told in found.values() for event in told if isinstance(event, EndEvent)} == {
        "stop", "length",
    }  # fmt: skip
    assert gauges.counts.overlapped > gauges.steps // 2


def _with_stop(request: Request, token: int) -> Request:
    return Request(**{name: getattr(request, name) for name in request.__slots__} | {"stop_token_ids": (token,)})
