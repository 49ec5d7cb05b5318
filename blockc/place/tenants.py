"""What the plan says of tenants: the bytes of weights that each costs, its quota, and its keys' names.

In: which tensors each tenant's models take. Out: bytes per tenant. Invariant: fair shares add up to the bytes of all
distinct tensors, whole bytes included; private bytes are those that would go if the tenant did.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

from blockc.graph import Chain, ModelPath
from blockc.plan import TenantEntry
from blockc.spec.deployment import Deployment
from blockc.unify import UnifiedGraph

# Bytes of tensors by their digests: strings, because a thousand apps name half a million of them.
_Sizes = Mapping[str, int]


def tenant_entries(deployment: Deployment, graph: UnifiedGraph) -> tuple[TenantEntry, ...]:
    """One entry per tenant that has apps, by name."""
    paths = {digest: _path_sizes(path) for digest, path in graph.paths.items()}
    sizes: dict[int, _Sizes] = {}
    taken: dict[str, dict[str, int]] = {}
    pm_bytes: dict[str, int] = {}
    for app in deployment.apps:
        index = graph.chain_of[app.model]
        if index not in sizes:
            chain = graph.chains[index]
            sizes[index] = paths[chain.path.digest] | _side_sizes(chain)
        taken.setdefault(app.tenant, {}).update(sizes[index])
        pm_bytes[app.tenant] = pm_bytes.get(app.tenant, 0) + sum(sizes[index].values())
    return tuple(_as_declared(entry, deployment) for entry in split_bytes(taken, pm_bytes))


def _as_declared(entry: TenantEntry, deployment: Deployment) -> TenantEntry:
    tenant = deployment.tenants[entry.tenant]
    return entry.model_copy(
        update={
            "requests_per_minute": _a_minute(tenant.quota.requests_per_s),
            "tokens_per_minute": _a_minute(tenant.quota.tokens_per_s),
            "key_secrets": tenant.key_secrets,
        }
    )


def _a_minute(rate: Fraction | None) -> int | None:
    """Whole ones: a quota below one in a minute would let nothing in."""
    return None if rate is None else max(1, math.floor(rate * 60))


def split_bytes(taken: Mapping[str, _Sizes], pm_bytes: Mapping[str, int]) -> tuple[TenantEntry, ...]:
    """``taken``: the tensors of each tenant; ``pm_bytes``: its apps' models, each by itself."""
    count: Counter[str] = Counter()
    for sizes in taken.values():
        count.update(sizes.keys())
    private = dict.fromkeys(sorted(taken), 0)
    shared, fair = dict(private), dict(private)
    takers: dict[str, list[str]] = {}  # of tensors that several tenants take
    shared_sizes: dict[str, int] = {}
    for name in private:
        for digest, nbytes in taken[name].items():
            if count[digest] == 1:
                private[name] += nbytes
            else:
                takers.setdefault(digest, []).append(name)
                shared_sizes[digest] = nbytes
        fair[name] = private[name]
    # Tensors that the same tenants take are split as one, so that odd bytes are few and do not pile up on one tenant.
    together: dict[tuple[str, ...], int] = {}
    for digest, tenants in takers.items():
        together[tuple(tenants)] = together.get(tuple(tenants), 0) + shared_sizes[digest]
    for names, nbytes in sorted(together.items()):
        each, odd = divmod(nbytes, len(names))
        for place, name in enumerate(names):
            shared[name] += nbytes
            fair[name] += each + (place < odd)
    return tuple(
        TenantEntry(
            tenant=name,
            pm_bytes=pm_bytes[name],
            private_bytes=private[name],
            shared_bytes=shared[name],
            fair_bytes=fair[name],
        )
        for name in private
    )


def _path_sizes(path: ModelPath) -> dict[str, int]:
    blocks = path.blocks if path.prelude is None else (*path.blocks, path.prelude)
    return {tensor.digest: tensor.nbytes for block in blocks for tensor in block.tensors.values()}


def _side_sizes(chain: Chain) -> dict[str, int]:
    terms = [term for side in chain.sides for term in side.terms]
    return {tensor.digest: tensor.nbytes for term in terms for _, tensor in term.tensors}
