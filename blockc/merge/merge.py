"""Which fine-tunes are merged into private weights.

In: chains by model, and what the spec says of each (`merge = never | auto | always`). Out: the chains, some of them
folded, and for each of those why. ``auto`` has two reasons: where the loads of all that use its weights are known, that
placement has less of what is wanted little of (`blockc.merge.weigh`); and that others are rarely there, by bytes read
(`blockc.merge.pays`), where that takes no more devices. Invariant: a chain keeps its function; what ``auto`` merges
fits the devices, and what it cannot say pays stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from blockc.diag import Diagnostics
from blockc.graph import Chain
from blockc.merge.fold import Folded, fold, imagined, private_bytes
from blockc.merge.pays import Demand, gain
from blockc.merge.weigh import Weigh, Weighed, hottest, remembering, weigh_each
from blockc.spec.deployment import App, Base, Deployment, FineTune, base_of
from blockc.zoo import Zoo


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Why a model was merged.

    ``gain``: the share of a step's time that it is expected to save, by bytes read; by load, of steps that it has for
    itself. ``private_bytes``: weights that only it has; ``rounding``: see `Folded`.
    """

    gain: float
    private_bytes: int
    rounding: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """``merges``: by model, for those that were; ``weighed``: for those that were or could have been, by load."""

    chains: Mapping[str, Chain]
    merges: Mapping[str, Merge]
    weighed: Mapping[str, Weighed] = field(default_factory=dict)


def merges_any(deployment: Deployment) -> bool:
    """Whether the spec lets anything be merged."""
    return any(_wanted(deployment, fine_tune) != "never" for fine_tune in deployment.fine_tunes.values())


def _wanted(deployment: Deployment, fine_tune: FineTune) -> str:
    return fine_tune.merge or deployment.policy.merge


def merge(
    deployment: Deployment, chains: Mapping[str, Chain], *, zoo: Zoo | None, weigh: Weigh, diags: Diagnostics
) -> Merged:
    """``weigh``: what a placement of chains has; asked only for what ``auto`` would add.

    ``zoo`` None: merged tensors have names only, and what rounding takes of them is not known. What stands on integers
    is not merged: BC304 for one that has to be.
    """

    def make(chain: Chain) -> Folded:
        return Folded(chain=imagined(chain), rounding=None) if zoo is None else fold(chain, zoo)

    found, weigh = dict(chains), remembering(weigh)
    merges: dict[str, Merge] = {}
    auto: list[str] = []
    for name, fine_tune in deployment.fine_tunes.items():
        wanted = _wanted(deployment, fine_tune)
        if wanted == "never" or name not in chains or not _is_used(deployment, name) or not chains[name].sides:
            continue
        base = base_of(deployment, name)
        if base.quantize is not None:
            if wanted == "always":
                _refuse(fine_tune, base, diags=diags)
        elif wanted == "auto":
            auto.append(name)
        else:
            folded = make(chains[name])
            _report(fine_tune, folded, diags=diags)
            found[name] = folded.chain
            merges[name] = _why(deployment, chains, name, folded, _gain(deployment, chains, name))
    by_load = [name for name in auto if _loads_known(deployment, chains, name)]
    if by_load and not weigh(found).by_load:
        by_load = []
    tokens = {name: _tokens_per_s(deployment, name) for name in by_load}
    names = hottest(chains, tokens)
    made, weighed = weigh_each(found, names, weigh=weigh, make=make) if names else ({}, {})
    for name, folded in made.items():
        found[name] = folded.chain
        merges[name] = _why(deployment, chains, name, folded, _alone(chains, name))
    saved = {name: _gain(deployment, chains, name) for name in auto if name not in made}
    for name in sorted((name for name in saved if saved[name] > 0), key=lambda name: (-saved[name], name)):
        now = weigh(found)
        if not weigh(found | {name: imagined(chains[name])}).is_no_harm_to(now):
            continue
        folded = make(chains[name])
        if folded.is_same and weigh(found | {name: folded.chain}).is_no_harm_to(now):
            found[name] = folded.chain
            merges[name] = _why(deployment, chains, name, folded, saved[name])
    return Merged(chains=found, merges=merges, weighed=weighed)


def _why(deployment: Deployment, chains: Mapping[str, Chain], name: str, folded: Folded, saved: float) -> Merge:
    others = [chain for other, chain in chains.items() if other != name and _is_used(deployment, other)]
    return Merge(gain=saved, private_bytes=private_bytes(folded.chain, others), rounding=folded.rounding)


def _refuse(fine_tune: FineTune, base: Base, *, diags: Diagnostics) -> None:
    diags.report(
        "BC304", f"`{fine_tune.name}` cannot be merged: the matrices of `{base.name}` are integers", at=fine_tune.span,
        notes=("its change would be rounded to their steps; beside them it is applied in full",),
        help="leave `merge` out, or `quantize`",
    )  # fmt: skip


def _report(fine_tune: FineTune, folded: Folded, *, diags: Diagnostics) -> None:
    if not folded.is_same and folded.rounding is not None:
        diags.report(
            "BC303", f"merging `{fine_tune.name}` rounds away {folded.rounding:.0%} of what it changes",
            at=fine_tune.span,
            notes=(f"its weights are {folded.chain.path.dtype}, and its change is small beside them",),
            help="write `merge = never`, or a wider `dtype` for its base",
        )  # fmt: skip


def _gain(deployment: Deployment, chains: Mapping[str, Chain], name: str) -> float:
    """See `blockc.merge.pays`."""
    return gain(
        own=[_demand(app) for app in deployment.apps if app.model == name],
        others=[_demand(app) for app in _others(deployment, chains, name)],
        sides_bytes=_sides_bytes(chains[name]),
        weights_bytes=_weights_bytes(chains[name]),
    )


def _alone(chains: Mapping[str, Chain], name: str) -> float:
    sides = _sides_bytes(chains[name])
    return sides / (sides + _weights_bytes(chains[name]))


def _sides_bytes(chain: Chain) -> int:
    return sum(side.nbytes for side in chain.sides)


def _weights_bytes(chain: Chain) -> int:
    return sum(ref.nbytes for ref in {ref for block in chain.path.blocks for ref in block.tensors.values()})


def _others(deployment: Deployment, chains: Mapping[str, Chain], name: str) -> list[App]:
    """All apps of other models that decode on any of its blocks."""
    blocks = {block.digest for block in chains[name].path.blocks}
    return [
        app
        for app in deployment.apps
        if app.model != name
        and app.model in chains
        and any(block.digest in blocks for block in chains[app.model].path.blocks)
    ]


def _loads_known(deployment: Deployment, chains: Mapping[str, Chain], name: str) -> bool:
    """Whether all that may decode on its weights say how many requests they expect."""
    own = [app for app in deployment.apps if app.model == name]
    return all(app.traffic.rate_rps is not None for app in (*own, *_others(deployment, chains, name)))


def _tokens_per_s(deployment: Deployment, name: str) -> Fraction:
    """What its apps expect to be read and written; lengths that nobody says are those of placement."""
    total = Fraction(0)
    for app in deployment.apps:
        if app.model == name and app.traffic.rate_rps is not None:
            prompt, output = app.traffic.prompt_tokens or 512, app.traffic.output_tokens or 128
            total += app.traffic.rate_rps * (prompt + output)
    return total


def _demand(app: App) -> Demand:
    target = next((value for name, value in sorted(app.slo.targets_s.items()) if name.startswith("tpot")), None)
    rate = app.traffic.rate_rps
    return Demand(
        rate_rps=None if rate is None else float(rate),
        output_tokens=app.traffic.output_tokens,
        token_s=None if target is None else float(target),
    )


def _is_used(deployment: Deployment, model: str) -> bool:
    return any(app.model == model for app in deployment.apps)
