"""What the compiler has between its stages, by hand: one base, a stacked adapter, a checkpoint with another layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from blockc.diag import Diagnostics
from blockc.graph import Block, Chain, KvLayerShape, ModelPath
from blockc.ir import Side, Site, TensorRef, Term, low_rank, parse_structure
from blockc.place import PlaceChain, PlaceDevice, PlaceGroup, Placement, PlaceProblem, PlaceSegment, place
from blockc.trace.model import KvLayer, Source, TracedBlock
from blockc.unify import UnifiedGraph, unify
from tests.plan.fleet import EMBED, HEAD, LAYER, PRELUDE, digest

_TEXTS = (EMBED, LAYER, LAYER, HEAD)


def models() -> dict[str, Any]:
    """After `read`."""
    base = SimpleNamespace(dtype="bfloat16", kv_cache_dtype="bfloat16", max_model_len=128)
    config = {"model_type": "llama", "rope": {"theta": 1e4}, "hidden_size": 64}
    adapter = {"r": 8, "target_modules": ["q"], "note": "\x1b[2J"}
    return {
        "tiny": SimpleNamespace(kind="base", written="./tiny", lineage=("tiny",), base=base, config=config),
        "terse": SimpleNamespace(kind="lora", written="./terse", lineage=("terse", "tiny"), base=base, config=adapter),
    }


def traced() -> dict[str, Any]:
    """After `trace`. A namespace, because only what is shown has to be there."""
    blocks = tuple(_traced(text, f"model.layers.{index}.") for index, text in enumerate(_TEXTS))
    model = SimpleNamespace(
        architecture="TinyForCausalLM",
        dtype="BF16",
        prelude=_traced(PRELUDE, "model.rotary."),
        blocks=blocks,
        kv_layers=(KvLayer(kv_heads=2, head_dim=32, window=None), KvLayer(kv_heads=2, head_dim=32, window=16)),
        vocab_size=256,
        max_positions=None,
    )
    return {"tiny": model, "legal": model}


def chains() -> dict[str, Chain]:
    """After `tune`."""
    base = _path("base")
    side = Side(site=Site(occurrence=1, name="q"), terms=(_term("one", 2.0), _term("two", 0.5)))
    assets = {"tokenizer.json": digest("tokenizer")}
    return {
        "tiny": Chain(path=base, sides=(), assets=assets, stop_token_ids=(2,)),
        "terse": Chain(path=base, sides=(side,), assets=assets, stop_token_ids=()),
        "legal": Chain(path=_path("legal"), sides=(), assets=assets, stop_token_ids=(2, 3)),
    }


def graph() -> UnifiedGraph:
    """After `unify`."""
    return unify(chains(), together=[frozenset(("tiny", "legal"))])


def placed(memory_bytes: int) -> tuple[PlaceProblem, Placement | None]:
    """After `place`; without a placement where memory is too small."""
    problem = PlaceProblem(
        devices=(PlaceDevice(address="local/d0", kind="cpu", memory_bytes=memory_bytes, reserve_bytes=1 << 10),),
        segments=(PlaceSegment(tensors=frozenset(), activation_bytes=1 << 12),),
        groups=(PlaceGroup(page_bytes=1 << 10, kv_heads=1, page_tokens=16, layers=2),),
        chains=(PlaceChain(label="tiny", segments=(0,), groups=(0,), side_bytes=512, max_model_len=128),),
        max_rows=4,
        pm_bytes=0,
        ps_bytes=0,
        ours_bytes=0,
    )
    return problem, place(problem, diags=Diagnostics())


def _traced(text: str, prefix: str) -> TracedBlock:
    structure = parse_structure(text)
    params = [name for name, _ in structure.params]
    return TracedBlock(
        structure=structure,
        binds={"scale": 0.25, "window": None} if structure.binds else {},
        sources={name: Source(name=prefix + name, transform="transpose" if name == "k" else "none") for name in params},
        contexts=tuple(range(len(structure.contexts))),
        sites={site: prefix + site for site in structure.sites},
    )


def _path(name: str) -> ModelPath:
    prelude = _block(PRELUDE, "prelude", None)
    blocks = tuple(_block(text, name if index == 2 else f"base {index}", prelude) for index, text in enumerate(_TEXTS))
    return ModelPath(
        blocks=blocks,
        prelude=prelude,
        kv_layers=tuple(KvLayerShape(kv_heads=2, head_dim=32, window=window, dtype="BF16") for window in (None, 16)),
        first_kv_layer=(0, 0, 1, 2),
        sites=tuple({site: site for site in block.structure.sites} for block in blocks),
        dtype="BF16",
        vocab_size=256,
        max_model_len=128,
    )


def _block(text: str, weights: str, prelude: Block | None) -> Block:
    structure = parse_structure(text)
    tensors = {}
    for name, type_ in structure.params:
        shape = tuple(size for size in type_.shape if isinstance(size, int))
        own = "tied" if name == "embed" else f"{weights}.{name}"
        tensors[name] = TensorRef(digest=digest(own), dtype=type_.dtype, shape=shape)
    return Block(
        structure=structure,
        binds={"scale": 0.25, "window": None} if structure.binds else {},
        tensors=tensors,
        prelude=prelude.digest if prelude is not None and structure.contexts else None,
        contexts=tuple(range(len(structure.contexts))),
    )


def _term(name: str, scale: float) -> Term:
    a = TensorRef(digest=digest(f"{name}.A"), dtype="BF16", shape=(8, 64))
    b = TensorRef(digest=digest(f"{name}.B"), dtype="BF16", shape=(64, 8))
    return low_rank(a, b, scale)
