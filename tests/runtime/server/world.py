"""A small world to serve: a tokenizer made on the spot, a plan of three tenants, a zoo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from blockc.ir.parse import parse_structure
from blockc.ir.structure import format_structure, structure_digest
from blockc.plan import (
    AppEntry,
    BaselineEntry,
    BatchingEntry,
    BlockEntry,
    ChainEntry,
    ChainKvEntry,
    ChainPricesEntry,
    CutEntry,
    DeviceEntry,
    ExecutionPlan,
    InstanceEntry,
    KvGroupEntry,
    KvLayerEntry,
    MemoryEntry,
    PathEntry,
    PricesEntry,
    RouteEntry,
    SegmentEntry,
    SolverEntry,
    TenantEntry,
    write_plan,
)
from blockc.zoo import Zoo

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "what is the answer to this question",
    "Füchse springen über Zäune, 狐狸跳过篱笆 🦊🐕",
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
# One attention layer without weights: enough for a plan that holds together.
STRUCTURE = """structure v1
input x: F32[1,T,8]
%q = aten.reshape.default(%x, [1, T, 1, 8])
%t = aten.transpose.int(%q, 1, 2)
%a = blockc.attention(%t, %t, %t, 0x1.0p+0, none, none)
%f = aten.reshape.default(%a, [1, T, 8])
return %f
"""
MAX_MODEL_LEN = 2048
KV_PAGES = 16384
APPS = (("acme", "chat"), ("acme", "code"), ("birch", "chat"))


@cache
def byte_level_tokenizer() -> str:
    """GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer.to_str()


@cache
def byte_fallback_tokenizer() -> str:
    """Llama 2's kind: blanks as U+2581, unknown characters as bytes, a blank in front stripped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyzé", "th", "he", "the", "▁the", "▁t"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[("t", "h"), ("h", "e"), ("th", "e"), ("▁", "t"), ("▁t", "he"), ("▁", "the")][:4],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer.to_str()


def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(byte_level_tokenizer())


def vocab_size() -> int:
    return int(tokenizer().get_vocab_size())


def assets(**generation: object) -> dict[str, bytes]:
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "tokenizer.json": byte_level_tokenizer().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "generation_config.json": json.dumps({"eos_token_id": 1, **generation}).encode(),
    }


def build(root: Path, files: Mapping[str, bytes] | None = None, *, requires: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """Write a plan and a zoo; return their paths."""
    zoo = Zoo(root / "zoo", create=True)
    digests = {name: zoo.put_blob(data) for name, data in (files or assets()).items()}
    path = root / "plan.json"
    write_plan(plan(digests).model_copy(update={"requires": requires}), path)
    return path, zoo.root


def build_more(folder: Path, zoo: Path, name: str, apps: Sequence[tuple[str, str]] = APPS, **options: Any) -> Path:
    """Write one more plan for the same zoo; return its path."""
    store = Zoo(zoo)
    digests = {name: store.put_blob(data) for name, data in assets().items()}
    write_plan(plan(digests, apps, **options), folder / name)
    return folder / name


def plan(
    digests: Mapping[str, str],
    apps: Sequence[tuple[str, str]] = APPS,
    *,
    ways: Sequence[tuple[int, ...]] = (),
    pages: int = KV_PAGES,
    memory_bytes: int = 1 << 30,
    quotas: Mapping[str, Mapping[str, Any]] | None = None,
) -> ExecutionPlan:
    """One chain an app, all with the same assets. An app's model is its place: what it says follows from that.

    ``ways``: of each app the devices that run it; empty: there is one, which runs all.
    """
    parsed = parse_structure(STRUCTURE)
    structure = structure_digest(parsed)
    digest = hashlib.sha256(b"").hexdigest()
    block = BlockEntry(structure=structure, tensors={}, binds={}, prelude=None, contexts=())
    entries = tuple(
        AppEntry(
            tenant=tenant, app=app, model=f"{tenant}-{app}", chain=index,
            isolation_group=hashlib.sha256(tenant.encode()).hexdigest(), weight=1.0,
        )
        for index, (tenant, app) in enumerate(apps)
    )  # fmt: skip
    chains = tuple(
        ChainEntry(
            digest=hashlib.sha256(f"chain {index}".encode()).hexdigest(), path=digest, sides=None,
            side_kinds=(), side_rank=0, segments=(0,), kv=(ChainKvEntry(group=0, domain=f"{index:064x}"),),
            assets=dict(digests), vocab_size=vocab_size(), max_model_len=MAX_MODEL_LEN,
            stop_token_ids=(1,),
        )
        for index in range(len(apps))
    )  # fmt: skip
    every = tuple(range(len(apps)))
    layer = KvLayerEntry(kv_heads=1, head_dim=8, window=None, dtype="F32")
    group = KvGroupEntry(
        first_layer=0,
        layers=1,
        kv_heads=1,
        head_dim=8,
        window=None,
        dtype="F32",
        page_tokens=16,
    )
    memory = MemoryEntry(
        device=0,
        weights_bytes=0,
        sides_bytes=0,
        kv_bytes=pages * group.page_bytes,
        workspace_bytes=0,
        reserve_bytes=0,
        capacity_bytes=memory_bytes,
    )
    made = ExecutionPlan(
        compiler="test", spec_digest=digest, target="cpu", requires=(),
        structures={structure: format_structure(parsed)},
        blocks={digest: block},
        paths={digest: PathEntry(blocks=(digest,), kv_layers=(layer,), dtype="F32")},
        chains=chains,
        segments=(
            SegmentEntry(
                path=digest, first=0, count=1, first_kv_layer=0, chains=every,
                cut=CutEntry(kind="end", chains=(), differs=()),
            ),
        ),
        kv_groups=(group,),
        nodes=("local",),
        devices=(
            DeviceEntry(
                address="local/d0", node="local", kind="cpu", memory_bytes=memory_bytes, reserve_bytes=0
            ),
        ),
        links=(),
        instances=(
            InstanceEntry(
                segments=(0,), devices=(0,), chains=every, max_rows=64, kv_pages={0: pages}
            ),
        ),
        edges=(),
        routes=tuple(RouteEntry(chain=index, alternatives=((0,),)) for index in every),
        apps=entries, models={}, memory=(memory,), baselines=BaselineEntry(pm_bytes=0, ps_bytes=0, ours_bytes=0),
        tenants=tuple(
            TenantEntry(
                tenant=tenant, pm_bytes=0, private_bytes=0, shared_bytes=0, fair_bytes=0,
                **(quotas or {}).get(tenant, {}),
            )
            for tenant in sorted({tenant for tenant, _ in apps})
        ),
        solver=SolverEntry(
            objective=("bytes",), value=0.0, bound=0.0, gap=0.0, status="optimal", seed=0,
            solver="test",
        ),
        batching=BatchingEntry(max_batched_tokens=2048, max_rows=64),
    )  # fmt: skip
    return on_devices(made, ways) if ways else made


def on_devices(whole: ExecutionPlan, ways: Sequence[tuple[int, ...]]) -> ExecutionPlan:
    """A plan of one device on several: of each app the devices that run it."""
    count = 1 + max(device for own in ways for device in own)
    (instance,), (memory,), (device,), (segment,) = whole.instances, whole.memory, whole.devices, whole.segments
    price = ChainPricesEntry(set_up_s=0.0, prompt_s=1e-5, row_s=1e-4, kv_bytes=64)
    tokens = instance.kv_pages[0] * whole.kv_groups[0].page_tokens
    chains = [tuple(chain for chain, own in enumerate(ways) if number in own) for number in range(count)]
    used = [number for number, own in enumerate(chains) if own]
    return whole.model_copy(
        update={
            "requires": ("devices:1",),
            "segments": (segment,),
            "devices": tuple(device.model_copy(update={"address": f"local/d{number}"}) for number in range(count)),
            "memory": tuple(memory.model_copy(update={"device": number}) for number in used),
            "instances": tuple(
                instance.model_copy(
                    update={
                        "devices": (number,),
                        "chains": own,
                        "prices": PricesEntry(
                            step_s=1e-3, segment_s={0: 1e-3}, chains=dict.fromkeys(own, price), cache_tokens=tokens
                        ),
                    }
                )
                for number, own in enumerate(chains)
                if own
            ),
            "routes": tuple(
                RouteEntry(chain=chain, alternatives=tuple((used.index(number),) for number in own))
                for chain, own in enumerate(ways)
            ),
        }
    )
