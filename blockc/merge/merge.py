"""Which fine-tunes are merged into private weights.

In: chains by model, and what the spec says of each (`merge = never | auto | always`). Out: the chains, some of them
folded, and for each of those why. Invariant: a chain keeps its function; what ``auto`` merges fits the devices, and
what it cannot say pays stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from blockc.diag import Diagnostics
from blockc.graph import Chain
from blockc.merge.fold import fold, private_bytes
from blockc.merge.pays import Demand, gain
from blockc.spec.deployment import App, Base, Deployment, FineTune, base_of
from blockc.zoo import Zoo

# Of a change, by its Frobenius norm: what rounding may take before a merged model is no longer the same to its users.
_MOST_ROUNDING = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Why a model was merged.

    ``gain``: the share of a step's time that it is expected to save; ``private_bytes``: weights that only it has;
    ``rounding``: see `Folded`.
    """

    gain: float
    private_bytes: int
    rounding: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """``merges``: by model, for those that were."""

    chains: Mapping[str, Chain]
    merges: Mapping[str, Merge]


def merges_any(deployment: Deployment) -> bool:
    """Whether the spec lets anything be merged."""
    settings = {fine_tune.merge or deployment.policy.merge for fine_tune in deployment.fine_tunes.values()}
    return settings - {"never"} != set()


def merge(
    deployment: Deployment,
    chains: Mapping[str, Chain],
    *,
    zoo: Zoo,
    fits: Callable[[Mapping[str, Chain]], bool],
    diags: Diagnostics,
) -> Merged:
    """``fits``: whether the devices can hold these chains; asked only for what ``auto`` would add.

    What stands on integers is not merged: BC304 for one that has to be.
    """
    found = dict(chains)
    merges: dict[str, Merge] = {}
    candidates: list[tuple[float, str, Chain, Merge]] = []
    for name, fine_tune in deployment.fine_tunes.items():
        wanted = fine_tune.merge or deployment.policy.merge
        apps = [app for app in deployment.apps if app.model == name]
        if wanted == "never" or name not in chains or not apps or not chains[name].sides:
            continue
        base = base_of(deployment, name)
        if base.quantize is not None:
            if wanted == "always":
                _refuse(fine_tune, base, diags=diags)
            continue
        saved = _gain(deployment, chains, name, apps)
        if wanted == "auto" and saved <= 0:
            continue
        folded = fold(chains[name], zoo)
        others = [chain for other, chain in chains.items() if other != name and _is_used(deployment, other)]
        why = Merge(
            gain=saved,
            private_bytes=private_bytes(folded.chain, others),
            rounding=folded.rounding,
        )
        if wanted == "always":
            _report(fine_tune, folded.chain, why, diags=diags)
            found[name], merges[name] = folded.chain, why
        elif why.rounding <= _MOST_ROUNDING:
            candidates.append((saved, name, folded.chain, why))
    for _, name, chain, why in sorted(candidates, key=lambda item: (-item[0], item[1])):
        if fits(found | {name: chain}):
            found[name], merges[name] = chain, why
    return Merged(chains=found, merges=merges)


def _refuse(fine_tune: FineTune, base: Base, *, diags: Diagnostics) -> None:
    diags.report(
        "BC304", f"`{fine_tune.name}` cannot be merged: the matrices of `{base.name}` are integers", at=fine_tune.span,
        notes=("its change would be rounded to their steps; beside them it is applied in full",),
        help="leave `merge` out, or `quantize`",
    )  # fmt: skip


def _report(fine_tune: FineTune, chain: Chain, why: Merge, *, diags: Diagnostics) -> None:
    if why.rounding > _MOST_ROUNDING:
        diags.report(
            "BC303", f"merging `{fine_tune.name}` rounds away {why.rounding:.0%} of what it changes", at=fine_tune.span,
            notes=(f"its weights are {chain.path.dtype}, and its change is small beside them",),
            help="write `merge = never`, or a wider `dtype` for its base",
        )  # fmt: skip


def _gain(deployment: Deployment, chains: Mapping[str, Chain], name: str, apps: list[App]) -> float:
    """See `blockc.merge.pays`. Others: all apps that decode on any of its blocks."""
    own = chains[name]
    blocks = {block.digest: block for block in own.path.blocks}
    others = [
        app
        for app in deployment.apps
        if app.model != name
        and app.model in chains
        and any(block.digest in blocks for block in chains[app.model].path.blocks)
    ]
    weights = {ref for block in blocks.values() for ref in block.tensors.values()}
    return gain(
        own=[_demand(app) for app in apps],
        others=[_demand(app) for app in others],
        sides_bytes=sum(side.nbytes for side in own.sides),
        weights_bytes=sum(ref.nbytes for ref in weights),
    )


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
