"""Plans made by hand around small models: what the compiler writes, without the compiler."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from blockc.ir import (
    DTYPE_CODE,
    TensorRef,
    canonical_json,
    json_digest,
    parse_structure,
    structure_digest,
    tensor_digest,
)
from blockc.plan import (
    BaselineEntry,
    BatchingEntry,
    BlockEntry,
    ChainEntry,
    ChainKvEntry,
    CutEntry,
    ExecutionPlan,
    InstanceEntry,
    KvGroupEntry,
    KvLayerEntry,
    PathEntry,
    RouteEntry,
    SegmentEntry,
    SideEntry,
    SideManifest,
    SolverEntry,
    TermEntry,
)
from blockc.zoo import Zoo


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """One occurrence in a model."""

    structure: str
    tensors: dict[str, Tensor]
    binds: dict[str, float | int | None] = field(default_factory=dict)
    has_context: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """``scale * B A`` at a site of an occurrence."""

    occurrence: int
    site: str
    a: Tensor
    b: Tensor
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A term of any codec at a site. ``kind``: of the site."""

    occurrence: int
    site: str
    kind: str
    codec: str
    tensors: dict[str, Tensor]
    scalars: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Blocks of a base model and the sides of each of its chains (an empty tuple: the base itself)."""

    blocks: tuple[BlockSpec, ...]
    prelude: BlockSpec | None
    kv: tuple[KvLayerEntry, ...]
    dtype: torch.dtype
    vocab: int
    max_len: int
    cuts: tuple[int, ...] = ()  # occurrences that begin a segment, beside the first


def reference(tensor: Tensor) -> tuple[TensorRef, bytes]:
    """A tensor by content, and its bytes."""
    dtype = DTYPE_CODE[str(tensor.dtype).removeprefix("torch.")]
    data = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
    shape = tuple(tensor.shape)
    return TensorRef(digest=tensor_digest(dtype, shape, data), dtype=dtype, shape=shape), data


class PlanBuilder:
    """Collects models and chains; ``build`` gives the plan. KV: one group per model and kind of layer."""

    def __init__(self, zoo: Zoo, *, pages: int = 64, page_tokens: int = 4) -> None:
        self.zoo, self.pages, self.page_tokens = zoo, pages, page_tokens
        self.structures: dict[str, str] = {}
        self.blocks: dict[str, BlockEntry] = {}
        self.paths: dict[str, PathEntry] = {}
        self.chains: list[ChainEntry] = []
        self.segments: list[SegmentEntry] = []
        self.groups: list[KvGroupEntry] = []
        self.tensors: dict[TensorRef, bytes] = {}

    def add(self, spec: ModelSpec, sides: tuple[tuple[Term | Part, ...], ...] = ((),)) -> list[int]:
        """Chains of one model, one per element of ``sides``. Returns their indices."""
        prelude = None if spec.prelude is None else self._block(spec.prelude, None)
        digests = tuple(self._block(block, prelude) for block in spec.blocks)
        path = json_digest("path", digests)
        dtype = DTYPE_CODE[str(spec.dtype).removeprefix("torch.")]
        self.paths[path] = PathEntry(blocks=digests, kv_layers=spec.kv, dtype=dtype)
        groups = self._groups(spec.kv)
        chains = list(range(len(self.chains), len(self.chains) + len(sides)))
        segments = self._segments(path, digests, spec.cuts, chains)
        for terms in sides:
            self.chains.append(
                ChainEntry(
                    digest=hashlib.sha256(f"chain {len(self.chains)}".encode()).hexdigest(),
                    path=path,
                    sides=self._manifest(terms) if terms else None,
                    side_kinds=tuple(sorted({_kind(term) for term in terms})),
                    side_rank=max((term.a.shape[0] for term in terms if isinstance(term, Term)), default=0),
                    segments=segments,
                    kv=tuple(ChainKvEntry(group=group, domain="0" * 64) for group in groups),
                    assets={},
                    vocab_size=spec.vocab,
                    max_model_len=spec.max_len,
                    stop_token_ids=(),
                )
            )
        return chains

    def build(self, *, target: Literal["cpu", "cuda"] = "cpu") -> ExecutionPlan:
        self.zoo.put_tensors(self.tensors.items())
        count = len(self.chains)
        return ExecutionPlan(
            compiler="test",
            spec_digest="0" * 64,
            target=target,
            requires=(),
            structures=self.structures,
            blocks=self.blocks,
            paths=self.paths,
            chains=tuple(self.chains),
            segments=tuple(self.segments),
            kv_groups=tuple(self.groups),
            nodes=("local",),
            devices=(),
            links=(),
            instances=(
                InstanceEntry(
                    segments=tuple(range(len(self.segments))),
                    devices=(0,),
                    chains=tuple(range(count)),
                    max_rows=64,
                    kv_pages=dict.fromkeys(range(len(self.groups)), self.pages),
                ),
            ),
            edges=(),
            routes=tuple(RouteEntry(chain=i, alternatives=((0,),)) for i in range(count)),
            apps=(),
            memory=(),
            models={},
            baselines=BaselineEntry(pm_bytes=0, ps_bytes=0, ours_bytes=0),
            solver=SolverEntry(objective=(), value=0, bound=0, gap=0, status="", seed=0, solver=""),
            batching=BatchingEntry(max_batched_tokens=4096, max_rows=64),
        )

    def _put(self, tensor: Tensor) -> TensorRef:
        """To be stored by ``build``, all at once: a pack a tensor would be slow."""
        ref, data = reference(tensor)
        self.tensors[ref] = data
        return ref

    def _block(self, spec: BlockSpec, prelude: str | None) -> str:
        structure = parse_structure(spec.structure)
        digest = structure_digest(structure)
        self.structures[digest] = spec.structure
        tensors = {name: self._put(tensor) for name, tensor in spec.tensors.items()}
        entry = BlockEntry(
            structure=digest,
            tensors=tensors,
            binds=spec.binds,
            prelude=prelude if spec.has_context else None,
            contexts=tuple(range(len(structure.contexts))),
        )
        block = json_digest("block", entry.model_dump(mode="json"))
        self.blocks[block] = entry
        return block

    def _groups(self, layers: tuple[KvLayerEntry, ...]) -> list[int]:
        groups: list[int] = []
        for index, layer in enumerate(layers):
            if index and layer == layers[index - 1]:
                last = self.groups[-1]
                self.groups[-1] = last.model_copy(update={"layers": last.layers + 1})
                continue
            groups.append(len(self.groups))
            self.groups.append(
                KvGroupEntry(
                    first_layer=index,
                    layers=1,
                    kv_heads=layer.kv_heads,
                    head_dim=layer.head_dim,
                    window=layer.window,
                    dtype=layer.dtype,
                    page_tokens=self.page_tokens,
                )
            )
        return groups

    def _segments(
        self, path: str, blocks: tuple[str, ...], cuts: tuple[int, ...], chains: list[int]
    ) -> tuple[int, ...]:
        edges = [0, *cuts, len(blocks)]
        first_segment, layers = len(self.segments), 0
        for first, end in pairwise(edges):
            self.segments.append(
                SegmentEntry(
                    path=path,
                    first=first,
                    count=end - first,
                    first_kv_layer=layers,
                    chains=tuple(chains),
                    cut=CutEntry(kind="end", chains=(), differs=()),
                )
            )
            for block in blocks[first:end]:
                text = self.structures[self.blocks[block].structure]
                layers += parse_structure(text).attention_count
        return tuple(range(first_segment, len(self.segments)))

    def _entry(self, term: Term | Part) -> TermEntry:
        if isinstance(term, Term):
            tensors, scalars = {"a": self._put(term.a), "b": self._put(term.b)}, {"scale": float(term.scale).hex()}
            return TermEntry(codec="low_rank", tensors=tensors, scalars=scalars)
        return TermEntry(
            codec=term.codec,
            tensors={role: self._put(value) for role, value in term.tensors.items()},
            scalars={name: value.hex() if isinstance(value, float) else value for name, value in term.scalars.items()},
        )

    def _manifest(self, terms: tuple[Term | Part, ...]) -> str:
        places: dict[tuple[int, str], list[Term | Part]] = {}
        for term in terms:
            places.setdefault((term.occurrence, term.site), []).append(term)
        manifest = SideManifest(
            sides=tuple(
                SideEntry(
                    occurrence=occurrence,
                    site=site,
                    terms=tuple(map(self._entry, terms)),
                )
                for (occurrence, site), terms in sorted(places.items())
            )
        )
        return self.zoo.put_blob(canonical_json(manifest.model_dump(mode="json")).encode())


def _kind(term: Term | Part) -> str:
    return "low_rank@linear" if isinstance(term, Term) else f"{term.codec}@{term.kind}"
