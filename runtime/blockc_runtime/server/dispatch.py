"""Which engine works on what, of one plan.

In: requests in the plan's numbers. Out: the engine of each, and the request in the numbers of what that engine has: its
part of the plan (`blockc.plan.parts_of`). An engine is called by the number of its device on this machine. Where a
chain has one way there is nothing to choose; else the router does (`blockc_runtime.router`), which is told what comes
of it. Invariant: a request goes where its chain is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from blockc.diag import refuse
from blockc.plan import ExecutionPlan, Part, part_of_node, parts_of
from blockc_runtime.capabilities import refusal, spans_engines
from blockc_runtime.kv.prefix import Prefix
from blockc_runtime.request import Request
from blockc_runtime.router import Ask, Router, prefix_keys, router_of

ALONE = 0  # the number of an engine of which no plan says where it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """See the module's text. ``parts``: by engine; empty where nobody has read the plan, and one engine has all of it.

    Choosing tells the router, so that this is frozen only in what it knows of the plan.
    """

    plan: ExecutionPlan | None = None
    parts: Mapping[int, Part] = field(default_factory=dict)
    router: Router | None = None
    engines: tuple[int, ...] = (ALONE,)
    ways: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # engines by chain

    def engines_of(self, chain: int) -> tuple[int, ...]:
        """Those that have a chain."""
        return self.ways.get(chain, self.engines)

    def device(self, engine: int) -> str:
        """What an engine runs on, as the plan calls it."""
        if self.plan is None or engine not in self.parts:
            return str(engine)
        return self.plan.devices[self.parts[engine].device].address

    def groups(self, engine: int) -> tuple[int, ...] | None:
        """The plan's KV groups that an engine has, in its own order; None: nobody knows."""
        return self.parts[engine].groups if engine in self.parts else None

    def route(self, request: Request) -> int:
        """Choose for a new request."""
        if self.router is None:
            return self.engines_of(request.chain)[0]
        choice = self.router.route(
            Ask(
                request=request.id, app=request.app, chain=request.chain,
                prompt_tokens=len(self._virtual(request)) + len(request.prompt),
                keys=self._keys(request, ()),
            ),
            time.monotonic(),
        )  # fmt: skip
        return self._engine_of(choice.instance)

    def hand_over(self, request: str, *, emitted: int) -> int | None:
        """Choose again for a request whose engine is gone; None: there is no other one in service."""
        if self.router is None:
            return None
        choice = self.router.hand_over(request, time.monotonic(), emitted=emitted)
        return None if choice is None else self._engine_of(choice.instance)

    def for_engine(self, engine: int, request: Request) -> Request:
        """The request as its engine knows it."""
        part = self.parts.get(engine)
        if part is None or part.plan is self.plan:
            return request
        return replace(request, chain=part.chains[request.chain], app=part.apps[request.app])

    def started(self, request: str) -> None:
        """It has its first token."""
        if self.router is not None:
            self.router.started(request)

    def ended(self, request: Request, emitted: Sequence[int]) -> None:
        """It has ended with so many tokens, which the next turn of a conversation may begin with."""
        if self.router is not None:
            self.router.ended(request.id, output_tokens=len(emitted), keys=self._keys(request, emitted))

    def lost(self, engine: int) -> None:
        """An engine is gone, with all that it had in its cache."""
        if self.router is not None and engine in self.parts:
            self.router.fail(self.parts[engine].instance)

    def back(self, engine: int) -> None:
        """There is an engine again, or for the first time."""
        if self.router is not None and engine in self.parts:
            self.router.back(self.parts[engine].instance, is_empty=True)

    def _engine_of(self, instance: int) -> int:
        return next(engine for engine, part in self.parts.items() if part.instance == instance)

    def _keys(self, request: Request, emitted: Sequence[int]) -> tuple[bytes, ...]:
        """What a cache may have of a request; of no use where it has one way only."""
        if self.plan is None or len(self.engines_of(request.chain)) == 1:
            return ()
        prefix = Prefix(request.isolation_group, [*self._virtual(request), *request.prompt, *emitted])
        return prefix_keys(prefix, [kv.domain for kv in self.plan.chains[request.chain].kv])

    def _virtual(self, request: Request) -> tuple[int, ...]:
        return () if self.plan is None else self.plan.chains[request.chain].virtual_tokens


def on_node(plan: ExecutionPlan, node: str | None) -> ExecutionPlan:
    """What a server has of a plan: the part of its node, by name where there are several.

    Raises `DiagnosticError` (BC905) for a node that the plan does not use, or that nobody named, and for instances on
    several devices.
    """
    if lacking := spans_engines(plan):
        refuse("BC905", refusal(lacking))
    nodes = sorted({plan.devices[device].node for instance in plan.instances for device in instance.devices})
    if node is None and len(nodes) > 1:
        refuse(
            "BC905",
            f"the plan uses devices of {len(nodes)} nodes ({', '.join(nodes)}), and a server has those of one",
            "say on which it runs with --node, one server on each; it answers for the apps that are placed there",
        )
    if node is not None and node not in nodes:
        refuse("BC905", f"the plan uses no device of a node `{node}`", f"name one of its nodes: {', '.join(nodes)}")
    own = plan if node is None else part_of_node(plan, node)
    if own.target == "cuda" and any(own.devices[instance.devices[0]].kind == "cpu" for instance in own.instances):
        refuse(
            "BC905",
            "the plan is for CUDA and runs something on a CPU device",
            "give devices of the two sorts to nodes of their own, in two specs",
        )
    return own


def dispatch_of(plan: ExecutionPlan) -> Dispatch:
    """Of a plan of one node. Raises `DiagnosticError` (BC905) where there is a choice, and nothing to choose by."""
    parts = {_number(plan, part.device): part for part in parts_of(plan)}
    engine_of = {part.instance: engine for engine, part in parts.items()}
    return Dispatch(
        plan=plan,
        parts=parts,
        router=router_of(plan),
        engines=tuple(sorted(parts)),
        ways={route.chain: tuple(engine_of[way[0]] for way in route.alternatives) for route in plan.routes},
    )


def _number(plan: ExecutionPlan, device: int) -> int:
    """A device among those of its sort on its node, in their order: of several GPUs its own."""
    own = plan.devices[device]
    before = [other for other in plan.devices[:device] if other.node == own.node]
    return sum(1 for other in before if (other.kind == "cpu") == (own.kind == "cpu"))
