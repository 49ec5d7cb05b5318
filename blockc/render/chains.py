"""Paths and chains as text: occurrences with their blocks and KV layers, sides, assets, limits.

In: the compiler's chains, or a plan and the manifests of its sides. Out: text. Invariant: a path that several chains
take stands once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from blockc.ir import Term
from blockc.plan import ExecutionPlan, SideManifest
from blockc.render.units import counted, printable, short

if TYPE_CHECKING:
    from blockc.graph import Chain, ModelPath


class _KvLayer(Protocol):
    """Of the graph or of the plan."""

    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PathView:
    """``occurrences``: block, structure and number of KV layers of each."""

    digest: str
    dtype: str
    occurrences: tuple[tuple[str, str, int], ...]
    kv_layers: Sequence[_KvLayer]


@dataclass(frozen=True, slots=True, kw_only=True)
class SideView:
    """One site. ``terms``: in words."""

    occurrence: int
    site: str
    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainView:
    """``label``: how it is called in its table. ``sides``: None if their manifest cannot be read here."""

    label: str
    names: tuple[str, ...]
    digest: str
    path: str
    sides: tuple[SideView, ...] | None
    assets: Mapping[str, str]
    vocab_size: int
    max_model_len: int
    stop_token_ids: tuple[int, ...]
    segments: tuple[int, ...] = ()
    kv: tuple[tuple[int, str], ...] = ()


def model_chains(chains: Mapping[str, Chain]) -> str:
    """The chains of models by name, as the compiler has them before it merges."""
    paths = {chain.path.digest: _path_view(chain.path) for chain in chains.values()}
    return render_chains(
        list(paths.values()),
        [
            ChainView(
                label=f"of model {printable(name)}",
                names=(),
                digest=chain.digest,
                path=chain.path.digest,
                sides=tuple(
                    SideView(
                        occurrence=side.site.occurrence,
                        site=side.site.name,
                        terms=tuple(map(_term_text, side.terms)),
                    )
                    for side in chain.sides
                ),
                assets=chain.assets,
                vocab_size=chain.path.vocab_size,
                max_model_len=chain.path.max_model_len,
                stop_token_ids=chain.stop_token_ids,
            )
            for name, chain in chains.items()
        ],
    )


def plan_chains(plan: ExecutionPlan, manifests: Mapping[str, SideManifest]) -> str:
    """The chains of a plan. ``manifests``: those that could be read, by digest."""
    apps: dict[int, list[str]] = {}
    for app in plan.apps:
        apps.setdefault(app.chain, []).append(app.address)
    structures = {digest: block.structure for digest, block in plan.blocks.items()}
    attention = {digest: text.count("= blockc.attention(") for digest, text in plan.structures.items()}
    return render_chains(
        [
            PathView(
                digest=digest,
                dtype=path.dtype,
                occurrences=tuple((block, structures[block], attention[structures[block]]) for block in path.blocks),
                kv_layers=path.kv_layers,
            )
            for digest, path in plan.paths.items()
        ],
        [
            ChainView(
                label=str(index),
                names=tuple(apps.get(index, ())),
                digest=chain.digest,
                path=chain.path,
                sides=() if chain.sides is None else _manifest_sides(manifests.get(chain.sides)),
                assets=chain.assets,
                vocab_size=chain.vocab_size,
                max_model_len=chain.max_model_len,
                stop_token_ids=chain.stop_token_ids,
                segments=chain.segments,
                kv=tuple((entry.group, entry.domain) for entry in chain.kv),
            )
            for index, chain in enumerate(plan.chains)
        ],
    )


def render_chains(paths: Sequence[PathView], chains: Sequence[ChainView]) -> str:
    """Paths, then the chains on them."""
    lines = [f"PATHS  ({counted(len(paths), 'path')})"]
    for path in paths:
        lines += ["", *_path(path)]
    lines += ["", f"CHAINS  ({counted(len(chains), 'chain')})"]
    for chain in chains:
        lines += ["", *_chain(chain)]
    return "\n".join(lines) + "\n"


def _path_view(path: ModelPath) -> PathView:
    return PathView(
        digest=path.digest,
        dtype=path.dtype,
        occurrences=tuple(
            (block.digest, block.structure_digest, block.structure.attention_count) for block in path.blocks
        ),
        kv_layers=path.kv_layers,
    )


def _manifest_sides(manifest: SideManifest | None) -> tuple[SideView, ...] | None:
    if manifest is None:
        return None
    return tuple(
        SideView(
            occurrence=side.occurrence,
            site=side.site,
            terms=tuple(map(_term_text, side.side.terms)),
        )
        for side in manifest.sides
    )


def _path(path: PathView) -> Iterator[str]:
    yield f"path {short(path.digest)}: {counted(len(path.occurrences), 'block')}, {path.dtype}"
    layer = 0
    for index, (block, structure, count) in enumerate(path.occurrences):
        caches = "".join(f", KV layer {layer + step}: {_kv(path.kv_layers[layer + step])}" for step in range(count))
        yield f"  {index:>3}  block {short(block)}  structure {short(structure)}{caches}"
        layer += count


def _kv(layer: _KvLayer) -> str:
    window = "" if layer.window is None else f", window {layer.window}"
    return f"{counted(layer.kv_heads, 'head')} of {layer.head_dim} {layer.dtype}{window}"


def _chain(chain: ChainView) -> Iterator[str]:
    yield f"chain {chain.label}: {short(chain.digest)}, path {short(chain.path)}"
    if chain.names:
        yield f"  apps      {', '.join(map(printable, chain.names))}"
    yield f"  limits    {counted(chain.max_model_len, 'token')}, vocabulary {chain.vocab_size}"
    yield f"  stops at  {', '.join(map(str, chain.stop_token_ids)) or 'no token'}"
    if chain.segments:
        yield f"  segments  {' > '.join(map(str, chain.segments))}"
    for group, domain in chain.kv:
        yield f"  KV group {group}: domain {short(domain)}"
    for name, digest in sorted(chain.assets.items()):
        yield f"  asset {printable(name)} = {short(digest)}"
    if chain.sides is None:
        yield "  sides     not shown: no zoo here to read them from"
        return
    for side in chain.sides:
        yield f"  side {side.occurrence} {printable(side.site)}: {' + '.join(side.terms)}"


def _term_text(term: Term) -> str:
    held = ", ".join(f"{role} {short(tensor.digest)}" for role, tensor in term.tensors)
    if term.codec == "low_rank":
        return f"rank {term.rank} x {term.scalar('scale'):g} ({held})"
    scalars = "".join(f" {name}={value}" for name, value in term.scalars)
    return f"{term.codec}{scalars} ({held})"
