"""Tables of a plan that say for whom: tenants, their apps, the models of the spec, and what they cost.

Names of tenants and apps never key a cache.
"""

from __future__ import annotations

from typing import Literal

from blockc.fine_tunes import FULL
from blockc.plan.entry import Digest, Entry


class TenantEntry(Entry):
    """Weight bytes of one tenant, its quota, and its keys.

    ``pm_bytes``: its apps' models, each by itself. ``private_bytes``: tensors that no other tenant takes;
    ``shared_bytes``: those that others take too, in full; ``fair_bytes``: every tensor divided among its takers, so
    that all tenants' together are the plan's ``ours_bytes``. What it may use in a minute; None: as much as it likes.
    ``key_secrets``: names of secrets whose values are its keys. A plan holds no value of any.
    """

    tenant: str
    pm_bytes: int
    private_bytes: int
    shared_bytes: int
    fair_bytes: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    key_secrets: tuple[str, ...] = ()


class AppEntry(Entry):
    """What clients call as ``tenant/app``. ``isolation_group`` keys caches together with content.

    ``ttft_s``: the time to first token that is aimed at, ``tpot_s``: to each further one, as the spec's targets add up;
    None: none in particular. ``priority``: of requests that say none, among their tenant's; the lowest goes first.
    ``served``: the part of its expected load that has a place.
    """

    tenant: str
    app: str
    model: str
    chain: int
    isolation_group: Digest
    weight: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    priority: int = 0
    served: float = 1.0

    @property
    def address(self) -> str:
        """What clients send as `model`."""
        return f"{self.tenant}/{self.app}"


class AgreementEntry(Entry):
    """How far a model is from its original on a probe: see `blockc.evaluate.Agreement`."""

    probe: str
    probe_digest: Digest
    tokens: int
    kl_mean: float
    kl_max: float
    top1: float
    perplexity: float
    original_perplexity: float


class SharingEntry(Entry):
    """How a full fine-tune is kept on the blocks of ``base``: see `blockc.share.Evidence`.

    ``tensors``: a blob with what each tensor lost (`EvidenceManifest`); ``own_bytes``: of the tensors that it does not
    store for itself, ``nbytes``: of what it stores in their place; ``lost``: the most that any lost of its change.
    """

    verdict: Literal["exact", "delta", "approx"]
    base: str
    differing: int
    shared: int
    replaced: tuple[int, ...]
    nbytes: int
    own_bytes: int
    lost: float
    tensors: Digest
    agreement: AgreementEntry | None


class QuantizationEntry(Entry):
    """What a model's matrices are kept as: see `blockc.quantize.Quantization`.

    ``tensors``: a blob with the error of each (`EvidenceManifest`); ``own_bytes``: of what they were, ``nbytes``: of
    what they are; ``error``: the largest, relative Frobenius norm.
    """

    bits: int
    group: int | None
    nbytes: int
    own_bytes: int
    error: float
    tensors: Digest | None
    agreement: AgreementEntry | None


class MergeEntry(Entry):
    """Why a fine-tune has private weights in place of sides: see `blockc.merge.Merge`.

    ``rounding`` None: there were no weights to round.
    """

    gain: float
    private_bytes: int
    rounding: float | None


class WeighedEntry(Entry):
    """What placement has of each goal with a fine-tune beside shared weights and merged: see `blockc.merge.Weighed`."""

    goals: tuple[str, ...]
    beside: tuple[float, ...]
    merged: tuple[float, ...]
    rounding: float | None = None


class ModelEntry(Entry):
    """A base or fine-tune of the spec: where it came from, for `blockc verify` and for people.

    ``kind``: ``base``, or a word of `blockc.fine_tunes`. ``source`` is a path as the spec writes it, relative to the
    spec, or a hub repository; None where the spec only assumes what the files will be. ``parameters``: of a full model
    by its configuration, tied ones once; None for an adapter. ``chain`` is None for a model that no app uses. Nothing
    that serves reads this table.
    """

    kind: str
    source: str | None
    parameters: int | None
    hub: bool
    revision: str | None
    parent: str | None
    chain: int | None
    merged: MergeEntry | None = None
    weighed: WeighedEntry | None = None
    sharing: SharingEntry | None = None
    quantization: QuantizationEntry | None = None

    @property
    def is_full(self) -> bool:
        """Whether it is a whole model rather than an adapter on one."""
        return self.kind in ("base", FULL)


class BaselineEntry(Entry):
    """Weight bytes: every model on its own (PM), base shared among adapters only (PS), and ours."""

    pm_bytes: int
    ps_bytes: int
    ours_bytes: int


class PriceRangeEntry(Entry):
    """Money an hour: no placement costs less than ``least``, and one was ``found`` at that; None: none was tried."""

    least: float
    found: float | None


class PriceEntry(Entry):
    """Money an hour, in whatever the spec counts in: of the devices that the plan uses, and of other ways to serve.

    ``pm``: every model by itself; ``ps``: adapters on shared bases; None: that fits nowhere.
    """

    per_hour: float
    pm: PriceRangeEntry | None
    ps: PriceRangeEntry | None
