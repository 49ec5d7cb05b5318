"""Fleets to place, made from code: bases, fine-tunes of several kinds, loads by a power law.

Each under three policies: ``pm`` (every model by itself, adapters merged), ``ps`` (adapters share their base, full
fine-tunes share nothing) and ``ours`` (equal blocks are one). Only which blocks are the same differs. Shapes are
those of Llama models, bfloat16; lengths, targets and shares are drawn with a fixed seed. Nothing is read from disk.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from blockc.cost import AttentionWork, ChainWork, PlanWork, SegmentWork, catalogue_rates
from blockc.ir import TensorRef
from blockc.ir.layout import ResidentTensor
from blockc.place import (
    PlaceChain,
    PlaceDevice,
    PlaceGroup,
    PlaceLoad,
    PlaceProblem,
    PlaceSegment,
    PlaceSpeed,
)
from blockc.spec.device_kinds import DEVICE_KINDS

Policy = Literal["pm", "ps", "ours"]
POLICIES: tuple[Policy, ...] = ("pm", "ps", "ours")
_KIND = "a100_80g"
_VOCAB = 32_000
_PAGE_TOKENS = 16
_MAX_LEN = 2048
_RANK = 16
_STEP_TOKENS = 2048
_LENGTHS = ((512, 128), (1024, 64), (256, 256))
_TPOT_S = (Fraction(1, 20), Fraction(1, 10))


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-like base."""

    name: str
    hidden: int
    layers: int
    ffn: int
    kv_heads: int
    head_dim: int

    @property
    def layer_parameters(self) -> int:
        """Of one layer."""
        kv = self.kv_heads * self.head_dim
        return self.hidden * (2 * self.hidden + 2 * kv) + 3 * self.hidden * self.ffn

    @property
    def adapter_bytes(self) -> int:
        """Of rank 16 at all seven matrices, bfloat16."""
        kv = self.kv_heads * self.head_dim
        ends = 2 * 2 * self.hidden + 2 * (self.hidden + kv) + 3 * (self.hidden + self.ffn)
        return 2 * _RANK * ends * self.layers


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("1b", 2048, 16, 8192, 8, 64),
        Shape("3b", 3072, 28, 8192, 8, 128),
        Shape("7b", 4096, 32, 11008, 32, 128),
        Shape("8b", 4096, 32, 14336, 8, 128),
        Shape("13b", 5120, 40, 13824, 40, 128),
        Shape("34b", 8192, 48, 22016, 8, 128),
        Shape("70b", 8192, 80, 28672, 8, 128),
    )
}


@dataclass(frozen=True, slots=True)
class Instance:
    """A fleet. ``mix``: parts of LoRA, of fine-tunes of the upper layers, of whole ones. ``rate_rps``: of all apps."""

    name: str
    title: str
    bases: tuple[str, ...]
    models: int
    nodes: tuple[int, ...]
    mix: tuple[float, float, float]
    isolated: float
    rate_rps: int
    seed: int = 5


# Rates are such that the fleets fill about as many GPUs as their titles say.
INSTANCES = (
    Instance("I1", "3 fine-tunes on 2 GPUs", ("7b",), 3, (2,), (0.0, 1.0, 0.0), 0.0, 5),
    Instance("I2", "20 fine-tunes of 3 bases on 12 GPUs", ("7b", "13b", "3b"), 20, (3,) * 4, (0.4, 0.4, 0.2), 0.0, 51),
    Instance(
        "I3", "200 fine-tunes of 5 bases on 64 GPUs", ("7b", "13b", "3b", "8b", "1b"), 200, (8,) * 8,
        (0.5, 0.4, 0.1), 0.01, 245,
    ),
    Instance(
        "I4", "1,000 LoRAs on 10 bases on 256 GPUs",
        ("8b", "7b", "3b", "13b", "1b", "70b", "7b", "34b", "3b", "1b"), 1000, (8,) * 32, (1.0, 0.0, 0.0), 0.0, 680,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Model:
    base: int
    kind: str
    first_own: int  # layers from here on are its own; equal to the layers of the base for a LoRA
    isolated: bool


def problem_of(instance: Instance, policy: Policy, *, more_devices: int = 1) -> PlaceProblem:
    """The fleet under a policy, on so many times the cluster's nodes, so that what needs more shows how much."""
    models = _models(instance)
    keys = [_keys(instance, models, number, policy) for number in range(len(models))]
    segments, paths = _segments(keys)
    shapes = [SHAPES[instance.bases[model.base]] for model in models]
    lora = [model.kind == "lora" and policy != "pm" for model in models]
    work = PlanWork(
        segments=tuple(_segment_work(SHAPES[instance.bases[base]], first, count) for base, first, count, _ in segments),
        chains=tuple(
            ChainWork(
                segments=path,
                attention=(
                    AttentionWork(
                        window=None,
                        token_bytes=4 * shape.layers * shape.kv_heads * shape.head_dim,
                        pair_flops=4 * shape.layers * shape.hidden,
                    ),
                ),
                side_bytes=shape.adapter_bytes if adapter else 0,
                side_token_flops=shape.adapter_bytes if adapter else 0,
            )
            for path, shape, adapter in zip(paths, shapes, lora, strict=True)
        ),
    )
    rates = catalogue_rates(DEVICE_KINDS[_KIND])
    assert rates is not None
    memory_bytes = DEVICE_KINDS[_KIND].memory_bytes
    assert memory_bytes is not None
    return PlaceProblem(
        devices=tuple(
            PlaceDevice(
                address=f"n{node}/g{gpu}", kind=_KIND, memory_bytes=memory_bytes, reserve_bytes=memory_bytes * 6 // 100
            )
            for node, gpus in enumerate(instance.nodes * more_devices)
            for gpu in range(gpus)
        ),
        segments=tuple(
            PlaceSegment(
                tensors=frozenset({_tensor(name, _bytes(SHAPES[instance.bases[base]], first, count))}),
                activation_bytes=2 * _STEP_TOKENS * (3 * shape.ffn + 4 * shape.hidden),
            )
            for base, first, count, name in segments
            for shape in (SHAPES[instance.bases[base]],)
        ),
        groups=tuple(
            PlaceGroup(
                page_bytes=4 * shape.layers * shape.kv_heads * shape.head_dim * _PAGE_TOKENS,
                kv_heads=shape.kv_heads,
                page_tokens=_PAGE_TOKENS,
                layers=shape.layers,
            )
            for shape in (SHAPES[name] for name in instance.bases)
        ),
        chains=tuple(
            PlaceChain(
                label=f"m{number}",
                segments=paths[number],
                groups=(model.base,),
                side_bytes=shapes[number].adapter_bytes if lora[number] else 0,
                max_model_len=_MAX_LEN,
                load=load,
            )
            for number, (model, load) in enumerate(zip(models, _loads(instance), strict=True))
        ),
        max_rows=1024,  # as good as none: the fleets name no limit
        pm_bytes=0,
        ps_bytes=0,
        ours_bytes=0,
        max_batched_tokens=_STEP_TOKENS,
        work=work,
        speeds={_KIND: PlaceSpeed(rates=rates, link_bytes_per_s=DEVICE_KINDS[_KIND].link_bytes_per_s)},
    )


def _models(instance: Instance) -> list[_Model]:
    generator = random.Random(instance.seed)
    lora, suffix, _ = instance.mix
    models = []
    for number in range(instance.models):
        base = number % len(instance.bases)
        layers = SHAPES[instance.bases[base]].layers
        draw = generator.random()
        kind = "lora" if draw < lora else "suffix" if draw < lora + suffix else "full"
        own = {"lora": layers, "full": 0}.get(kind, layers - layers * generator.choice((1, 2, 3, 4)) // 8)
        models.append(_Model(base, kind, own, number < round(instance.isolated * instance.models)))
    return models


def _loads(instance: Instance) -> list[PlaceLoad]:
    generator = random.Random(instance.seed + 1)
    ranks = list(range(instance.models))
    generator.shuffle(ranks)
    weights = [(rank + 1) ** -0.8 for rank in ranks]
    total = sum(weights)
    loads = []
    for weight in weights:
        prompt, output = generator.choice(_LENGTHS)
        loads.append(
            PlaceLoad(
                rate_rps=Fraction(round(1e6 * instance.rate_rps * weight / total), 10**6),
                prompt_tokens=Fraction(prompt),
                output_tokens=Fraction(output),
                tpot_s=generator.choice(_TPOT_S),
            )
        )
    return loads


_Key = tuple[int, int, str]  # base, block, whose


def _keys(instance: Instance, models: list[_Model], number: int, policy: Policy) -> list[_Key]:
    """What each block of a model is: the embedding, the layers, the head; whose it is where it is not the base's."""
    model = models[number]
    layers = SHAPES[instance.bases[model.base]].layers
    own = f"m{number}"
    if policy == "pm" or model.isolated:
        return [(model.base, block, own) for block in range(layers + 2)]
    if policy == "ps":
        whose = "" if model.kind == "lora" else own
        return [(model.base, block, whose) for block in range(layers + 2)]
    return [
        (model.base, block, own if model.kind == "full" or (1 + model.first_own <= block <= layers) else "")
        for block in range(layers + 2)
    ]


def _segments(keys: list[list[_Key]]) -> tuple[list[tuple[int, int, int, str]], list[tuple[int, ...]]]:
    """Runs of blocks that the same models pass: (base, first block, count, name); and each model's."""
    users: dict[_Key, set[int]] = {}
    for number, path in enumerate(keys):
        for key in path:
            users.setdefault(key, set()).add(number)
    signature = {key: tuple(sorted(models)) for key, models in users.items()}
    found: dict[tuple[_Key, int], int] = {}
    segments: list[tuple[int, int, int, str]] = []
    paths = []
    for path in keys:
        own, start = [], 0
        for place in range(1, len(path) + 1):
            if place < len(path) and signature[path[place]] == signature[path[start]]:
                continue
            run = (path[start], place - start)
            if run not in found:
                found[run] = len(segments)
                base, first, whose = path[start]
                segments.append((base, first, place - start, f"{base} {first} {whose}"))
            own.append(found[run])
            start = place
        paths.append(tuple(own))
    return segments, paths


def _bytes(shape: Shape, first: int, count: int) -> int:
    """Bytes of a run of blocks."""
    ends = sum(block in (0, shape.layers + 1) for block in range(first, first + count))
    return 2 * ((count - ends) * shape.layer_parameters + ends * _VOCAB * shape.hidden)


def _segment_work(shape: Shape, first: int, count: int) -> SegmentWork:
    blocks = range(first, first + count)
    layers = sum(0 < block <= shape.layers for block in blocks)
    head = shape.layers + 1 in blocks
    return SegmentWork(
        blocks=count,
        read_bytes=2 * layers * shape.layer_parameters,
        row_read_bytes=2 * _VOCAB * shape.hidden if head else 0,
        token_flops=2 * layers * shape.layer_parameters,
        row_flops=2 * _VOCAB * shape.hidden if head else 0,
        reduces=2 * layers,
        reduce_bytes=2 * layers * 2 * shape.hidden,
    )


def _tensor(name: str, nbytes: int) -> ResidentTensor:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return ResidentTensor(ref=TensorRef(digest=digest, dtype="U8", shape=(nbytes // 1024, 1024)), form="plain")
