"""A plan as the compiler writes it, without a compiler: one base, adapters on it, a checkpoint with another top layer.

Placed by `blockc.place`, so that its memory tables are real.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from blockc.diag import Diagnostics
from blockc.ir import TensorRef, format_structure, json_digest, parse_structure, structure_digest
from blockc.ir.layout import activation_bytes, block_tensors
from blockc.place import PlaceChain, PlaceDevice, PlaceGroup, PlaceProblem, PlaceSegment, place
from blockc.plan import (
    AppEntry,
    BatchingEntry,
    BlockEntry,
    ChainEntry,
    ChainKvEntry,
    CutEntry,
    DeviceEntry,
    ExecutionPlan,
    KvGroupEntry,
    KvLayerEntry,
    ModelEntry,
    PathEntry,
    SegmentEntry,
)

HIDDEN, VOCAB, LAYERS = 64, 256, 4

PRELUDE = """structure v1
input positions: I64[1,T]
param inv_freq: F32[16]
%0 = aten.unsqueeze.default(%positions, -1)
%1 = aten.to.dtype(%0, #F32)
%2 = aten.mul.Tensor(%1, @inv_freq)
%3 = aten.cat.default([%2, %2], -1)
%4 = aten.cos.default(%3)
return %4
"""
EMBED = f"""structure v1
input tokens: I64[1,T]
param embed: BF16[{VOCAB},{HIDDEN}]
%0 = blockc.embedding(%tokens, @embed, "embed")
return %0
"""
LAYER = f"""structure v1
input x: BF16[1,T,{HIDDEN}]
context cos: F32[1,T,32]
bind scale
bind window
param norm: BF16[{HIDDEN}]
param q: BF16[{HIDDEN},{HIDDEN}]
param k: BF16[{HIDDEN},{HIDDEN}]
%n = blockc.rms_norm(%x, @norm, 0x1.0p-20)
%q = blockc.linear(%n, @q, none, "q")
%k = blockc.linear(%n, @k, none, "k")
%q1 = aten.reshape.default(%q, [1, T, 2, 32])
%k1 = aten.reshape.default(%k, [1, T, 2, 32])
%q2 = aten.transpose.int(%q1, 1, 2)
%k2 = aten.transpose.int(%k1, 1, 2)
%a = blockc.attention(%q2, %k2, %k2, $scale, $window, none)
%o = aten.reshape.default(%a, [1, T, {HIDDEN}])
%r = aten.add.Tensor(%x, %o)
return %r
"""
HEAD = f"""structure v1
input x: BF16[1,T,{HIDDEN}]
param norm: BF16[{HIDDEN}]
param embed: BF16[{VOCAB},{HIDDEN}]
%s = blockc.select_rows(%x)
%n = blockc.rms_norm(%s, @norm, 0x1.0p-20)
%l = blockc.linear(%n, @embed, none, "lm_head")
return %l
"""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _structure(text: str) -> tuple[str, str]:
    structure = parse_structure(text)
    return structure_digest(structure), format_structure(structure)


class _Blocks:
    """Structures and blocks by digest."""

    def __init__(self) -> None:
        self.structures: dict[str, str] = {}
        self.blocks: dict[str, BlockEntry] = {}

    def add(self, text: str, weights: str, *, prelude: str | None = None) -> str:
        key, canonical = _structure(text)
        self.structures[key] = canonical
        structure = parse_structure(canonical)
        tensors = {}
        for name, type_ in structure.params:
            shape = tuple(size for size in type_.shape if isinstance(size, int))
            own = "tied" if name == "embed" else f"{weights}.{name}"
            tensors[name] = TensorRef(digest=digest(own), dtype=type_.dtype, shape=shape)
        entry = BlockEntry(
            structure=key,
            tensors=tensors,
            binds={"scale": 0.25, "window": None} if structure.binds else {},
            prelude=prelude,
            contexts=tuple(range(len(structure.contexts))),
        )
        name = json_digest("block", [weights, key])
        self.blocks[name] = entry
        return name


def fleet_plan(
    *,
    adapters: int = 2,
    apps: Sequence[tuple[str, str, int]] | None = None,
    memory_bytes: int = 8 << 20,
    devices: int = 1,
) -> ExecutionPlan:
    """Chain 0 is the base, 1 the checkpoint, the rest adapters. ``apps``: (tenant, name, chain)."""
    store = _Blocks()
    prelude = store.add(PRELUDE, "prelude")
    base = (
        store.add(EMBED, "embed"),
        *(store.add(LAYER, f"layer{i}", prelude=prelude) for i in range(LAYERS)),
        store.add(HEAD, "head"),
    )
    other = (*base[:LAYERS], store.add(LAYER, "tuned", prelude=prelude), base[-1])
    kv = tuple(KvLayerEntry(kv_heads=2, head_dim=32, window=None, dtype="BF16") for _ in range(LAYERS))
    paths = {
        digest(name): PathEntry(blocks=blocks, kv_layers=kv, dtype="BF16")
        for name, blocks in (("base", base), ("tuned", other))
    }
    chains = tuple(_chain(index) for index in range(2 + adapters))
    on_base = tuple(index for index in range(len(chains)) if index != 1)
    segments = (
        _segment("base", 0, LAYERS, 0, tuple(range(len(chains))), _cut("part", 0, 1)),
        _segment("base", LAYERS, 1, LAYERS - 1, on_base, _cut("join", 0, 1)),
        _segment("tuned", LAYERS, 1, LAYERS - 1, (1,), _cut("join", 1, 0)),
        _segment("base", LAYERS + 1, 1, LAYERS, tuple(range(len(chains))), CutEntry(kind="end", chains=(), differs=())),
    )
    groups = tuple(
        KvGroupEntry(
            first_layer=first, layers=layers, kv_heads=2, head_dim=32, window=None, dtype="BF16", page_tokens=16
        )
        for first, layers in ((0, LAYERS - 1), (LAYERS - 1, 1))
    )
    plan_devices = tuple(
        DeviceEntry(address=f"local/d{i}", node="local", kind="cpu", memory_bytes=memory_bytes, reserve_bytes=1 << 18)
        for i in range(devices)
    )
    problem = place_problem_of(store, paths, segments, groups, chains, plan_devices)
    diags = Diagnostics()
    placement = place(problem, diags=diags)
    assert placement is not None, list(diags)
    if apps is None:
        apps = [("acme", "chat", 0), ("acme", "draft", 2), ("zoo", "law", 1)][: 2 + adapters]
    return ExecutionPlan(
        compiler="blockc test",
        spec_digest=digest("spec"),
        target="cpu",
        requires=("device:cpu", "format:1"),
        structures=dict(sorted(store.structures.items())),
        blocks=dict(sorted(store.blocks.items())),
        paths=dict(sorted(paths.items())),
        chains=chains,
        segments=segments,
        kv_groups=groups,
        nodes=("local",),
        devices=plan_devices,
        links=(),
        instances=placement.instances,
        edges=(),
        routes=placement.routes,
        apps=tuple(
            AppEntry(
                tenant=tenant,
                app=name,
                model=_model_name(chain),
                chain=chain,
                isolation_group=digest(tenant),
                weight=1.0,
            )
            for tenant, name, chain in apps
        ),
        models={
            _model_name(index): ModelEntry(
                kind="base" if index == 0 else "full" if index == 1 else "lora",
                source=f"./{_model_name(index)}",
                parameters=None if index > 1 else 2_000_000,
                hub=False,
                revision=None,
                parent=None if index == 0 else "base",
                chain=index,
            )
            for index in range(len(chains))
        },
        memory=placement.memory,
        baselines=placement.baselines,
        solver=placement.solver,
        batching=BatchingEntry(max_batched_tokens=256, max_rows=8),
    )


def place_problem_of(
    store: _Blocks,
    paths: dict[str, PathEntry],
    segments: tuple[SegmentEntry, ...],
    groups: tuple[KvGroupEntry, ...],
    chains: tuple[ChainEntry, ...],
    devices: tuple[DeviceEntry, ...],
) -> PlaceProblem:
    found = []
    for segment in segments:
        blocks = [store.blocks[b] for b in paths[segment.path].blocks[segment.first : segment.first + segment.count]]
        structures = [parse_structure(store.structures[block.structure]) for block in blocks]
        tensors = [block_tensors(s, block.tensors) for s, block in zip(structures, blocks, strict=True)]
        found.append(
            PlaceSegment(
                tensors=frozenset().union(*tensors),
                activation_bytes=max(activation_bytes(structure, tokens=256, rows=8) for structure in structures),
            )
        )
    refs = {tensor.ref for segment in found for tensor in segment.tensors}
    whole = sum(ref.nbytes for ref in refs)
    return PlaceProblem(
        devices=tuple(
            PlaceDevice(address=d.address, kind=d.kind, memory_bytes=d.memory_bytes, reserve_bytes=d.reserve_bytes)
            for d in devices
        ),
        segments=tuple(found),
        groups=tuple(
            PlaceGroup(page_bytes=g.page_bytes, kv_heads=g.kv_heads, page_tokens=g.page_tokens, layers=g.layers)
            for g in groups
        ),
        chains=tuple(
            PlaceChain(
                label=_model_name(index),
                segments=chain.segments,
                groups=tuple(kv.group for kv in chain.kv),
                side_bytes=8192 * chain.side_rank,
                max_model_len=chain.max_model_len,
            )
            for index, chain in enumerate(chains)
        ),
        max_rows=8,
        pm_bytes=whole * len(chains),
        ps_bytes=whole * 2,
        ours_bytes=whole,
    )


def _model_name(chain: int) -> str:
    return ("base", "tuned")[chain] if chain < 2 else f"adapter{chain - 2}"


def _chain(index: int) -> ChainEntry:
    adapter = index >= 2
    return ChainEntry(
        digest=digest(f"chain {index}"),
        path=digest("tuned" if index == 1 else "base"),
        sides=digest(f"sides {index}") if adapter else None,
        side_kinds=("low_rank@linear",) if adapter else (),
        side_rank=8 if adapter else 0,
        segments=(0, 2, 3) if index == 1 else (0, 1, 3),
        kv=(
            # The last layer's keys differ for the checkpoint; an adapter changes all of them.
            ChainKvEntry(group=0, domain=digest(f"lower {index if adapter else 0}")),
            ChainKvEntry(group=1, domain=digest(f"upper {index}")),
        ),
        assets={"tokenizer.json": digest("tokenizer")},
        vocab_size=VOCAB,
        max_model_len=128,
        stop_token_ids=(2,),
    )


def _cut(kind: Literal["part", "join"], one: int, other: int) -> CutEntry:
    return CutEntry(kind=kind, chains=(one, other), differs=("tensor:k", "tensor:norm", "tensor:q"))


def _segment(path: str, first: int, count: int, layer: int, chains: tuple[int, ...], cut: CutEntry) -> SegmentEntry:
    return SegmentEntry(path=digest(path), first=first, count=count, first_kv_layer=layer, chains=chains, cut=cut)


def wider(plan: ExecutionPlan, count: int) -> ExecutionPlan:
    """The same plan with ``count`` apps on its base."""
    app = plan.apps[0]
    apps = tuple(
        app.model_copy(
            update={"app": f"app{i:04}", "tenant": f"tenant{i % 7}", "isolation_group": digest(f"tenant{i % 7}")}
        )
        for i in range(count)
    )
    return plan.model_copy(update={"apps": apps})
