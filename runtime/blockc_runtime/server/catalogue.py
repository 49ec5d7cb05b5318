"""What is served: the plan's apps, each with the text side of its chain.

In: a plan and a zoo. Out: a `Catalogue` of `ServedApp`. Invariant: chains whose assets are equal
share one tokenizer, so that a thousand fine-tunes of one model cost one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from blockc.plan import AppEntry, ChainEntry, EmbeddingEntry, ExecutionPlan, reads_whole_texts
from blockc.zoo import Zoo
from blockc_runtime.server.auth import Caller
from blockc_runtime.server.quotas import Quota
from blockc_runtime.server.tokenizer import TEXT_ASSETS, ChainText, load_chain_text

Yields = Literal["text", "scores", "embedding"]

GENERATION_CONFIG = "generation_config.json"
# What a generation_config.json may ask for that this server does not do, with its neutral values.
_NOT_APPLIED: dict[str, tuple[object, ...]] = {
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
}


_NO_QUOTAS: Mapping[str, Quota] = {}
_NO_SECRETS: Mapping[str, tuple[str, ...]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What a model's ``generation_config.json`` says where a request says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedApp:
    """One app as requests need it. ``index`` and ``chain`` are those of the plan that is called ``epoch``.

    ``max_model_len``: prompt and answer; what the chain's virtual tokens take is gone from it, and of a text that is
    read as a whole what no step holds. ``labels``: names of classes, of a model that yields scores of them in place of
    text, or of ``each_token`` of it; ``embedding``: of one that yields a vector. ``segments``: of the plan, those that
    it passes. ``priority``: of requests that say none.
    """

    epoch: int
    index: int
    chain: int
    tenant: str
    app: str
    isolation_group: str
    text: ChainText
    defaults: SamplingDefaults
    stop_token_ids: tuple[int, ...]
    vocab_size: int
    max_model_len: int
    labels: tuple[str, ...] = ()
    each_token: bool = False
    embedding: EmbeddingEntry | None = None
    segments: tuple[int, ...] = ()
    priority: int = 0

    @property
    def yields(self) -> Yields:
        """What it makes of a text."""
        return "scores" if self.labels else "text" if self.embedding is None else "embedding"

    @property
    def model(self) -> str:
        """The name clients call it by."""
        return f"{self.tenant}/{self.app}"


class Catalogue:
    """The apps by name, as far as a caller may know of them; of tenants their quotas, and keys' names, in the plan."""

    def __init__(
        self,
        apps: tuple[ServedApp, ...],
        *,
        epoch: int = 0,
        quotas: Mapping[str, Quota] = _NO_QUOTAS,
        key_secrets: Mapping[str, tuple[str, ...]] = _NO_SECRETS,
    ) -> None:
        self.epoch = epoch
        self._apps = {app.model: app for app in apps}
        self._quotas = dict(quotas)
        self._key_secrets = dict(key_secrets)

    def replace(self, other: Catalogue) -> None:
        """Be what ``other`` is, from here on. An app that somebody has found already stays as it was for them."""
        self.epoch, self._apps = other.epoch, other._apps
        self._quotas, self._key_secrets = other._quotas, other._key_secrets

    def quota(self, tenant: str) -> Quota:
        """Return the limits that the plan gives to a tenant."""
        return self._quotas.get(tenant, Quota())

    @property
    def tenants(self) -> frozenset[str]:
        """All tenants of the plan, those too of which no app is served here."""
        return frozenset(app.tenant for app in self._apps.values()) | self._key_secrets.keys()

    @property
    def key_secrets(self) -> dict[str, tuple[str, ...]]:
        """All tenants of the plan, with the names of the secrets that are their keys."""
        return {tenant: self._key_secrets.get(tenant, ()) for tenant in sorted(self.tenants)}

    def find(self, model: str, caller: Caller) -> ServedApp | None:
        """Return the app; None if there is none or it is none of the caller's business."""
        app = self._apps.get(model)
        return app if app is not None and caller.may_use(app.tenant) else None

    def visible(self, caller: Caller) -> Iterator[ServedApp]:
        """Yield what the caller may use, in the plan's order."""
        return (app for app in self._apps.values() if caller.may_use(app.tenant))


def load_catalogue(plan: ExecutionPlan, zoo: Zoo, progress: Callable[[str], None], *, epoch: int = 0) -> Catalogue:
    """Load every chain's assets. Raises `DiagnosticError` (BC903, BC904)."""
    texts: dict[tuple[tuple[str, str], ...], ChainText] = {}
    apps = []
    for index, entry in enumerate(plan.apps):
        chain = plan.chains[entry.chain]
        assets = tuple((name, chain.assets[name]) for name in TEXT_ASSETS if name in chain.assets)
        if assets not in texts:
            contents = {name: zoo.blob(digest) for name, digest in assets}
            texts[assets] = load_chain_text(contents, of=f"the model `{entry.model}` of {entry.address}")
        most_tokens = chain.max_model_len - len(chain.virtual_tokens)
        if reads_whole_texts(plan, entry.chain):
            most_tokens = min(most_tokens, plan.batching.max_batched_tokens)
        apps.append(_served_app(epoch, index, entry, zoo, texts[assets], most_tokens, progress, chain=chain))
    secrets = {entry.tenant: entry.key_secrets for entry in plan.tenants}
    return Catalogue(tuple(apps), epoch=epoch, quotas=_quotas(plan), key_secrets=secrets)


def _quotas(plan: ExecutionPlan) -> dict[str, Quota]:
    return {
        entry.tenant: Quota(
            requests_per_minute=entry.requests_per_minute, tokens_per_minute=entry.tokens_per_minute
        )
        for entry in plan.tenants
    }  # fmt: skip


def _served_app(
    epoch: int,
    index: int,
    entry: AppEntry,
    zoo: Zoo,
    text: ChainText,
    most_tokens: int,
    progress: Callable[[str], None],
    *,
    chain: ChainEntry,
) -> ServedApp:
    config = _generation_config(chain, zoo)
    for name, neutral in _NOT_APPLIED.items():
        if config.get(name) not in neutral:
            progress(f"warning[BC804]: {entry.address}: {GENERATION_CONFIG}'s `{name}` has no effect")
    return ServedApp(
        epoch=epoch,
        index=index,
        chain=entry.chain,
        tenant=entry.tenant,
        app=entry.app,
        isolation_group=entry.isolation_group,
        text=text,
        defaults=_defaults(config),
        stop_token_ids=_stop_ids(chain, config),
        vocab_size=chain.vocab_size,
        max_model_len=most_tokens,
        labels=chain.labels,
        each_token=chain.each_token,
        embedding=chain.embedding,
        segments=chain.segments,
        priority=entry.priority,
    )


def _generation_config(chain: ChainEntry, zoo: Zoo) -> dict[str, Any]:
    if GENERATION_CONFIG not in chain.assets:
        return {}
    try:
        config = json.loads(zoo.blob(chain.assets[GENERATION_CONFIG]))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _defaults(config: dict[str, Any]) -> SamplingDefaults:
    """Take the values as vLLM does: ``do_sample`` says nothing about a server's requests."""

    def number(name: str, default: float) -> float:
        value: Any = config.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number else default

    limit = config.get("max_new_tokens")
    return SamplingDefaults(
        temperature=number("temperature", 1.0),
        top_p=number("top_p", 1.0),
        top_k=max(0, int(number("top_k", 0))),
        min_p=number("min_p", 0.0),
        repetition_penalty=number("repetition_penalty", 1.0),
        max_new_tokens=limit if type(limit) is int and limit > 0 else None,
    )


def _stop_ids(chain: ChainEntry, config: dict[str, Any]) -> tuple[int, ...]:
    stated = config.get("eos_token_id")
    ids = stated if isinstance(stated, list) else [stated]
    known = (*chain.stop_token_ids, *(id_ for id_ in ids if type(id_) is int))
    return tuple(sorted({id_ for id_ in known if 0 <= id_ < chain.vocab_size}))
