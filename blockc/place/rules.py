"""What a spec expects of chains and says about where they run: loads and rules, with the lines that say so.

In: a deployment and its graph. Out: a load for each chain with expected traffic, and rules. Several apps of one model
version are one load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Final

from blockc.place.loads import merged
from blockc.place.problem import PlaceLoad, PlacePart, PlaceRule
from blockc.spec.deployment import App, Deployment, Policy
from blockc.unify import UnifiedGraph

# Of requests whose lengths the spec does not say; those of `blockc simulate`.
DEFAULT_PROMPT_TOKENS: Final = 512
DEFAULT_OUTPUT_TOKENS: Final = 128


def chain_loads(deployment: Deployment, graph: UnifiedGraph) -> dict[int, PlaceLoad]:
    """By chain; chains without a rate have none."""
    apps: dict[int, list[App]] = {}
    for app in deployment.apps:
        if app.traffic.rate_rps is not None:
            apps.setdefault(graph.chain_of[app.model], []).append(app)
    return {
        chain: merged([_part(app, graph.chains[chain].path.max_model_len) for app in own])
        for chain, own in apps.items()
    }


def _part(app: App, max_model_len: int) -> PlacePart:
    output = _output(app, max_model_len)
    return PlacePart(
        app=app.address,
        priority=app.priority,
        rate_rps=app.traffic.rate_rps or Fraction(0),
        prompt_tokens=_prompt(app, max_model_len),
        output_tokens=output,
        tpot_s=least_tpot_s(app, max_model_len),
        ttft_s=app.slo.most("ttft"),
        span=app.traffic_span or app.span,
        slo_span=app.slo_span or app.span,
    )


def least_tpot_s(app: App, max_model_len: int) -> Fraction | None:
    """The time to each further token that an app's targets leave; None: it has none."""
    return min(_tpots(app, _output(app, max_model_len)), default=None)


def _prompt(app: App, max_model_len: int) -> int:
    given = app.traffic.prompt_tokens
    return min(DEFAULT_PROMPT_TOKENS, max(1, max_model_len // 2)) if given is None else given


def _output(app: App, max_model_len: int) -> int:
    given = app.traffic.output_tokens
    return min(DEFAULT_OUTPUT_TOKENS, max(1, max_model_len // 4)) if given is None else given


def _tpots(app: App, output: int) -> Iterator[Fraction]:
    """What targets leave for a token: their own, and that of the whole answer divided among its tokens."""
    token, end = app.slo.most("tpot"), app.slo.most("e2e")
    if token is not None:
        yield token
    if end is not None:
        yield end / (output + 1)


def place_objective(policy: Policy) -> tuple[str, ...]:
    """What the policy names, then what is asked for by default. Targets are kept to: ``slo`` first says no more."""
    named = policy.objective[1:] if policy.objective[:1] == ("slo",) else policy.objective
    devices = () if "cost" in named else ("devices",)
    return (*named, *(goal for goal in (*devices, "peak_load") if goal not in named))


def place_rules(deployment: Deployment, graph: UnifiedGraph) -> tuple[PlaceRule, ...]:
    """Pins, apps that are to be apart or in several places, tenants that share their devices with nobody."""
    chains = {app.address: graph.chain_of[app.model] for app in deployment.apps}
    return (
        *_pins(deployment, chains),
        *_apart(deployment, chains),
        *_replicas(deployment, chains),
        *_alone(deployment, chains),
    )


def _pins(deployment: Deployment, chains: Mapping[str, int]) -> Iterator[PlaceRule]:
    for app in deployment.apps:
        if app.pin is not None:
            devices = frozenset(
                index
                for index, device in enumerate(deployment.cluster.devices)
                if app.pin in (device.address, device.address.split("/")[0])
            )
            yield PlaceRule(
                kind="pin", chains=(chains[app.address],), devices=devices, span=app.pin_span,
                text=f"{app.address} on {app.pin}",
            )  # fmt: skip


def _apart(deployment: Deployment, chains: Mapping[str, int]) -> Iterator[PlaceRule]:
    for app in deployment.apps:
        for other in app.apart_from:
            both = chains[app.address] == chains[other]
            yield PlaceRule(
                kind="apart", chains=(chains[app.address], chains[other]), span=app.apart_span,
                text=f"{app.address} apart from {other}",
                conflict="both are one model version, which has one route" if both else None,
            )  # fmt: skip


def _replicas(deployment: Deployment, chains: Mapping[str, int]) -> Iterator[PlaceRule]:
    for app in deployment.apps:
        if app.replicas > 1:
            where = "on {} nodes" if app.spread == "node" else "in {} instances"
            yield PlaceRule(
                kind="nodes" if app.spread == "node" else "replicas", chains=(chains[app.address],),
                count=app.replicas, span=app.replicas_span, text=f"{app.address} {where.format(app.replicas)}",
            )  # fmt: skip


def _alone(deployment: Deployment, chains: Mapping[str, int]) -> Iterator[PlaceRule]:
    for tenant in deployment.tenants.values():
        if tenant.isolation == "devices" and tenant.apps:
            own = tuple(sorted({chains[app.address] for app in tenant.apps}))
            others = [
                app.address for app in deployment.apps if app.tenant != tenant.name and chains[app.address] in own
            ]
            yield PlaceRule(
                kind="alone", chains=own, span=tenant.span, text=f"tenant {tenant.name} on devices of its own",
                conflict=f"{others[0]} is the same model version, which has one route" if others else None,
            )  # fmt: skip
