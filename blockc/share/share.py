"""Which blocks of full fine-tunes are those of the model that they derive from.

In: chains by model, and the policy. Out: the chains with shared blocks and sides in place of private blocks, and for
each model that changed the evidence. Verdicts in order: exact where nothing is lost; delta within a budget for each
tensor; approx where the whole chain on a probe stays within a bound. Invariant: without a policy that says otherwise a
chain is the function that it was; with one, what it lost was measured on the chain that is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from blockc.diag import Diagnostics
from blockc.evaluate import Agreement, Probe, ProbeError, compare, logits, probe_of, report_probe
from blockc.evaluate.run import NotEvaluatedError
from blockc.graph import Chain
from blockc.ir import Side
from blockc.share.beside import Beside, beside, likeness, own_bytes, same_form
from blockc.share.evidence import Evidence, TensorEvidence, Verdict
from blockc.spec.deployment import Policy
from blockc.tune import ModelFiles
from blockc.tune.stack import StackError, stack_sides
from blockc.zoo import Zoo


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """``evidence``: by model, for full fine-tunes that take blocks of another."""

    chains: Mapping[str, Chain]
    evidence: Mapping[str, Evidence]


def share(
    policy: Policy, files: Mapping[str, ModelFiles], chains: Mapping[str, Chain], *, zoo: Zoo, diags: Diagnostics
) -> Shared:
    """``files`` lists parents before children. Problems with a probe go to ``diags``."""
    found, evidence = dict(chains), dict[str, Evidence]()
    for name, model in files.items():
        if name not in chains:
            continue
        parent = next((step for step in model.lineage[1:] if files[step].is_full), None)
        if model.is_full and parent in found:
            result = _Sharing(policy, chains[name], found[parent], parent, zoo, diags).run()
            if result is not None:
                found[name], evidence[name] = result
        elif not model.is_full and parent in evidence:
            found[name] = _moved(chains[name], chains[parent], found[parent], zoo)
    return Shared(chains=found, evidence=evidence)


def _moved(chain: Chain, parent: Chain, onto: Chain, zoo: Zoo) -> Chain:
    """An adapter of a full fine-tune on the blocks that the fine-tune now has, under its own head if it has one.

    Unless they cannot be composed, or it has blocks of its own in the layers.
    """
    pairs = list(zip(chain.path.blocks, parent.path.blocks, strict=False))
    same = next((at for at, (own, other) in enumerate(pairs) if own.digest != other.digest), len(pairs))
    head = chain.path.blocks[same:]
    if not same or any(block.structure.attention_count for block in head):
        return chain
    below = tuple(side for side in onto.sides if side.site.occurrence < same)
    try:
        sides = stack_sides(below, chain.sides, zoo=zoo)
    except StackError:
        return chain
    return replace(chain, path=replace(chain.path, blocks=(*onto.path.blocks[:same], *head)), sides=sides)


class _Sharing:
    """One full fine-tune on its parent's blocks."""

    def __init__(
        self, policy: Policy, chain: Chain, parent: Chain, parent_name: str, zoo: Zoo, diags: Diagnostics
    ) -> None:
        self.policy, self.chain, self.zoo, self.diags = policy, chain, zoo, diags
        self.parent, self.parent_name = parent, parent_name
        self.blocks, self.sides = list(chain.path.blocks), list[Side]()
        self.tensors: list[TensorEvidence] = []
        self.verdict: Verdict = "exact"
        self.replaced: list[int] = []
        self.agreement: Agreement | None = None
        self.probe: Probe | None = None

    def run(self) -> tuple[Chain, Evidence] | None:
        """The chain on shared blocks; None if none of its blocks could be shared that are not the same anyway."""
        ours, theirs = self.chain.path, self.parent.path
        if len(ours.blocks) != len(theirs.blocks) or self.parent.sides or ours.kv_layers != theirs.kv_layers:
            return None
        differing = [i for i, block in enumerate(ours.blocks) if block.digest != theirs.blocks[i].digest]
        share = self.policy.share
        for index in differing:
            own = beside(ours.blocks[index], theirs.blocks[index], index, zoo=self.zoo, max_error=None)
            if own is not None:
                self._take(index, own)
        if share.mode == "delta":
            self._deltas([index for index in differing if self._is_private(index)], float(share.max_error or 0))
        elif share.mode == "approx":
            self._similar([index for index in differing if self._is_private(index)])
        count = sum(not self._is_private(index) for index in differing)
        if not count:
            return None
        return self._chain(), Evidence(
            verdict=self.verdict,
            base=self.parent_name,
            differing=len(differing),
            shared=count,
            tensors=tuple(self.tensors),
            replaced=tuple(self.replaced),
            agreement=self.agreement,
            probe=self.probe,
        )

    def _is_private(self, index: int) -> bool:
        return self.blocks[index].digest != self.parent.path.blocks[index].digest

    def _take(self, index: int, own: Beside) -> None:
        self.zoo.put_tensors(list(own.fresh))
        self.blocks[index] = self.parent.path.blocks[index]
        self.sides += own.sides
        self.tensors += own.evidence

    def _chain(self) -> Chain:
        path = replace(self.chain.path, blocks=tuple(self.blocks))
        return replace(self.chain, path=path, sides=tuple(sorted(self.sides, key=lambda side: side.site)))

    def _deltas(self, indices: Sequence[int], max_error: float) -> None:
        """Every block whose tensors keep to the budget; then what all of them together do to the chain."""
        original = self._original() if indices else None
        if original is None:
            return
        for index in indices:
            block, base = self.chain.path.blocks[index], self.parent.path.blocks[index]
            own = beside(block, base, index, zoo=self.zoo, max_error=max_error)
            if own is not None:
                self._take(index, own)
                self.verdict = "delta"
        if self.verdict == "delta":
            self.agreement = self._agreement(original)

    def _similar(self, indices: Sequence[int]) -> None:
        """The most alike first, each kept only while the whole chain stays within the bound."""
        original = self._original() if indices else None
        if original is None:
            return
        share, theirs = self.policy.share, self.parent.path.blocks
        assert share.metric is not None
        assert share.bound is not None
        alike = {
            index: likeness(self.blocks[index], theirs[index], self.zoo)
            for index in indices
            if same_form(self.blocks[index], theirs[index])
        }
        for index in sorted(alike, key=lambda index: (-alike[index], index)):
            before = self.blocks[index]
            self.blocks[index] = theirs[index]
            agreement = self._agreement(original)
            if agreement.metric(share.metric) > share.bound:
                self.blocks[index] = before
                continue
            self.agreement, self.verdict = agreement, "approx"
            self.replaced.append(index)
            self.tensors.append(
                TensorEvidence(
                    occurrence=index, parameter="", codec="replaced", lost=1.0, error=0.0, nbytes=0,
                    own_bytes=own_bytes(before, theirs[index].tensors),
                )
            )  # fmt: skip

    def _original(self) -> list[Tensor] | None:
        """Logits of the fine-tune as it is; None where it cannot be evaluated or its probe not be read."""
        try:
            self.probe = probe_of(self.chain, self.policy.share.probe, self.zoo)
            return logits(self.chain, self.zoo, self.probe.texts)
        except NotEvaluatedError:
            return None
        except (ProbeError, OSError) as error:
            assert self.policy.share.probe is not None
            report_probe(error, self.policy.share.probe, at=self.policy.share_span, diags=self.diags)
            return None

    def _agreement(self, original: Sequence[Tensor]) -> Agreement:
        assert self.probe is not None
        return compare(original, logits(self._chain(), self.zoo, self.probe.texts), self.probe.texts)
