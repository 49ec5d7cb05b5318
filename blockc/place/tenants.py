"""Who costs how many bytes of weights: what a tenant has to itself, what it shares, and its fair share.

In: which tensors each tenant's models take. Out: bytes per tenant. Invariant: fair shares add up to the bytes of all
distinct tensors, whole bytes included; private bytes are those that would go if the tenant did.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockc.graph import Chain
from blockc.ir import TensorRef
from blockc.plan import TenantEntry
from blockc.spec.deployment import Deployment
from blockc.unify import UnifiedGraph


def tenant_entries(deployment: Deployment, graph: UnifiedGraph) -> tuple[TenantEntry, ...]:
    """One entry per tenant that has apps, by name."""
    tensors: dict[int, frozenset[TensorRef]] = {}
    taken: dict[str, set[TensorRef]] = {}
    pm_bytes: dict[str, int] = {}
    for app in deployment.apps:
        index = graph.chain_of[app.model]
        if index not in tensors:
            tensors[index] = _tensors(graph.chains[index])
        taken.setdefault(app.tenant, set()).update(tensors[index])
        own = sum(tensor.nbytes for tensor in tensors[index])
        pm_bytes[app.tenant] = pm_bytes.get(app.tenant, 0) + own
    return split_bytes(taken, pm_bytes)


def split_bytes(taken: Mapping[str, set[TensorRef]], pm_bytes: Mapping[str, int]) -> tuple[TenantEntry, ...]:
    """``taken``: the tensors of each tenant; ``pm_bytes``: its apps' models, each by itself."""
    takers: dict[TensorRef, list[str]] = {}
    for tenant in sorted(taken):
        for tensor in taken[tenant]:
            takers.setdefault(tensor, []).append(tenant)
    private = dict.fromkeys(sorted(taken), 0)
    shared, fair = dict(private), dict(private)
    # Tensors that the same tenants take are split as one, so that odd bytes are few and do not pile up on one tenant.
    together: dict[tuple[str, ...], int] = {}
    for tensor, tenants in takers.items():
        together[tuple(tenants)] = together.get(tuple(tenants), 0) + tensor.nbytes
    for names, nbytes in sorted(together.items()):
        each, odd = divmod(nbytes, len(names))
        for place, name in enumerate(names):
            kind = private if len(names) == 1 else shared
            kind[name] += nbytes
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


def _tensors(chain: Chain) -> frozenset[TensorRef]:
    path = chain.path
    blocks = path.blocks if path.prelude is None else (*path.blocks, path.prelude)
    own = {tensor for block in blocks for tensor in block.tensors.values()}
    return frozenset(own.union(tensor for side in chain.sides for term in side.terms for tensor in (term.a, term.b)))
