"""Bottleneck adapters in AdapterHub's layout.

Houlsby's (arXiv 1902.00751), Pfeiffer's (2005.00247), parallel ones (2110.04366).

In: a directory with ``adapter_config.json`` and ``adapter.safetensors`` as `adapters` 1.x writes it. Out: bottlenecks
at the sums of residual stream and sublayer that it names. With r the stream, y the sublayer's result and d what the
bottleneck makes of what it reads, a decoder's new stream is ``r + y + d``: Houlsby's reads y, Pfeiffer's ``r + y``,
parallel ones r. Invariant: settings under which the library would compute anything else are refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from blockc.graph import ModelPath
from blockc.ir import Site, Term, term
from blockc.tune.adapter import AdapterFiles, Tuned, plain
from blockc.tune.draft import Draft
from blockc.tune.kinds.bottleneck_config import BottleneckSettings, read_settings

_LAYER = re.compile(r"(?:.*\.)?\d+\.")
# What else such a directory may hold that would have a say.
_OTHER_PARTS = (
    "head_config.json", "model_head.safetensors", "pytorch_model_head.bin", "adapter_fusion_config.json",
    "model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin", "embedding.pt",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """``prefix`` of its parameters; where attention and the feed-forward network are added to the stream."""

    prefix: str
    sums: tuple[Site, Site]


def read(files: AdapterFiles) -> Tuned | None:
    """See `blockc.tune.kinds.Reader`."""
    settings = read_settings(files)
    if settings is None:
        return None
    if parts := [name for name in _OTHER_PARTS if (files.checkpoint.root / name).exists()]:
        files.diags.report(
            "BC204", f"{files.written} holds more than an adapter: {parts[0]}", at=files.at,
            notes=("heads, fusions and embeddings beside an adapter are not applied",),
            help="if the base's own are meant, save the adapter again with `with_head=False`",
        )  # fmt: skip
        return None
    layers = _layers(files.parent.path)
    if layers is None:
        files.diags.report(
            "BC208", f"{files.written} is a bottleneck adapter for a base of another build", at=files.at,
            notes=("in each layer attention and the feed-forward network must be added to the stream one by one",),
            help="put it on a decoder such as Llama, Mistral or GPT-2",
        )  # fmt: skip
        return None
    draft = Draft(files)
    hidden = files.parent.path.blocks[layers[0].sums[0].occurrence].places[layers[0].sums[0].name].shape[0]
    if settings.hidden_size != hidden:
        files.misfit(f"hidden_size is {settings.hidden_size}, its base has {hidden}")
    found = False
    for number, layer in enumerate(layers):
        for module, site in zip(("attention_adapters", "output_adapters"), layer.sums, strict=True):
            width = settings.width(number, module)
            if width is not None:
                found = True
                adapter = f"{_spelled(files, layer.prefix)}{module}.adapters.{settings.name}"
                one = _term(files, settings, adapter, width, hidden)
                if one is not None:
                    draft.add(site, one)
    if not found:
        files.diags.report(
            "BC211", f"the configuration of {files.written} puts no bottleneck anywhere", at=files.at,
            notes=("`mh_adapter` and `output_adapter` are off, or all layers are left out",),
            help="save the adapter again with the library that made it",
        )  # fmt: skip
    return draft.finish()


def _layers(path: ModelPath) -> list[_Layer] | None:
    """The decoder's layers; None if one of them has other than two sums."""
    found: dict[str, list[Site]] = {}
    for occurrence, (block, prefix) in enumerate(zip(path.blocks, path.prefixes, strict=True)):
        for place in block.places.values():
            if place.kind == "residual":
                found.setdefault(prefix, []).append(Site(occurrence=occurrence, name=place.name))
    if not path.kv_layers or len(found) != len(path.kv_layers) or not all(map(_LAYER.fullmatch, found)):
        return None
    if any(len(sums) != 2 for sums in found.values()):
        return None
    return [_Layer(prefix=prefix, sums=(sums[0], sums[1])) for prefix, sums in found.items()]


def _spelled(files: AdapterFiles, prefix: str) -> str:
    """As the file has it: saved from the bare decoder, names lack their first part."""
    bare = prefix.partition(".")[2]
    names = files.checkpoint.files
    return bare if any(name.startswith(bare) for name in names) else prefix


def _term(files: AdapterFiles, settings: BottleneckSettings, adapter: str, width: int, hidden: int) -> Term | None:
    def take(part: str, *shape: int) -> torch.Tensor | None:
        return files.take(plain(f"{adapter}.{part}"), shape)

    first = 1 if settings.ln_before else 0
    parts = {
        "down": take(f"adapter_down.{first}.weight", width, hidden),
        "down_bias": take(f"adapter_down.{first}.bias", width),
        "up": take("adapter_up.weight", hidden, width),
        "up_bias": take("adapter_up.bias", hidden),
    }
    for norm, is_there in (("before", settings.ln_before), ("after", settings.ln_after)):
        for part in ("weight", "bias") if is_there else ():
            value = take(f"adapter_norm_{norm}.{part}", hidden)
            # The norm before is the first of `adapter_down` as well, and a file may hold it under both names.
            twin = plain(f"{adapter}.adapter_down.0.{part}")
            if norm == "before" and twin in files and value is not None:
                other = files.take(twin, (hidden,))
                if other is not None and not torch.equal(other, value):
                    files.misfit(f"{twin} differs from its norm")
            parts[f"{norm}_{part}"] = value
    scaling = None
    if isinstance(settings.scaling, str):
        scaling = take("scaling", 1 if settings.scaling == "learned" else hidden)
        parts["scaling"] = scaling
    if any(value is None for value in parts.values()):
        return None
    held: dict[str, Any] = {role: value for role, value in parts.items() if role != "scaling"}
    if scaling is not None:
        held["up"] = (held["up"].float() * scaling.float()[:, None]).to(files.dtype)
        held["up_bias"] = (held["up_bias"].float() * scaling.float()).to(files.dtype)
    return term(
        "bottleneck",
        {role: files.store(value) for role, value in held.items()},
        activation=settings.activation,
        reads=settings.reads,
        scale=settings.scaling if isinstance(settings.scaling, float) else 1.0,
    )
