"""A first spec for a folder of models: what they are by their configurations, one app for each.

In: a folder, and the devices to use. Out: the text of a spec that checks. What cannot be told from files is said in a
comment where it matters: which fine-tune an adapter stands on, if it names none that is here. Reads configurations
only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockc.architectures import ENCODERS, SUPPORTED

_DEPTH = 4  # folders below the given one
_MOST = 2000  # folders that are looked into
_MAX_CONFIG_BYTES = 4 << 20
_SHAPE = ("model_type", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "intermediate_size",
          "num_attention_heads", "num_key_value_heads")  # fmt: skip
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_WORDS = frozenset({"import", "var", "let", "for", "in", "as", "true", "false", "null"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A folder with a model. ``written``: as a spec in the folder that was searched writes it."""

    name: str
    written: str
    is_adapter: bool
    config: dict[str, Any]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a checkpoint has in common with those that are fine-tuned from it."""
        return tuple(self.config.get(key) for key in _SHAPE)

    @property
    def last_of_origin(self) -> str:
        """The last part of the name that an adapter gives of what it was trained on."""
        return re.split(r"[/\\]", str(self.config.get("base_model_name_or_path") or "").rstrip("/\\"))[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftDevice:
    """``kind`` and ``memory`` as the language writes them."""

    kind: str
    memory: str
    reserve: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """``unused``: folders that the spec leaves out, and why."""

    text: str
    bases: int
    fine_tunes: int
    unused: tuple[tuple[str, str], ...]


def find_models(root: Path) -> tuple[FoundModel, ...]:
    """Models below a folder, in order of their paths; names are made unique and fit to be labels."""
    found: list[FoundModel] = []
    taken: set[str] = set()
    for number, (folder, folders, names) in enumerate(os.walk(root)):
        here = Path(folder)
        deep = len(here.relative_to(root).parts) >= _DEPTH
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith((".", "checkpoint-")))
        if number >= _MOST:
            break
        model = _model(root, here, set(names), taken)
        if model is not None:
            found.append(model)
            taken.add(model.name)
            folders[:] = []
    return tuple(found)


def draft(models: Sequence[FoundModel], devices: Sequence[DraftDevice]) -> Draft | None:
    """None if no model is among them that could be a base."""
    unused = [
        (model.written, "its name cannot be written in a spec") for model in models if not model.written.isprintable()
    ]
    models = [model for model in models if model.written.isprintable()]
    whole = [model for model in models if not model.is_adapter]
    unused += [
        (model.written, f"model type `{model.config.get('model_type')}` is not supported")
        for model in whole
        if not _is_supported(model)
    ]
    whole = [model for model in whole if _is_supported(model)]
    adapters = [model for model in models if model.is_adapter]
    wanted = {model.last_of_origin for model in adapters}
    bases: dict[tuple[Any, ...], FoundModel] = {}
    for model in sorted(whole, key=lambda m: (Path(m.written).name not in wanted, "base" not in m.name, m.written)):
        bases.setdefault(model.shape, model)
    if not bases:
        return None
    named = [model for model in whole if bases[model.shape] is not model]
    tunes = [(model, bases[model.shape].name, "") for model in named]
    for adapter in adapters:
        parent, remark = _parent(adapter, models, list(bases.values()))
        if parent is None:
            unused.append((adapter.written, remark))
        else:
            tunes.append((adapter, parent, remark))
    text = "\n".join(_spec(list(bases.values()), tunes, devices, unused)) + "\n"
    return Draft(text=text, bases=len(bases), fine_tunes=len(tunes), unused=tuple(unused))


def _model(root: Path, folder: Path, names: set[str], taken: set[str]) -> FoundModel | None:
    if not any(name.endswith(".safetensors") for name in names):
        return None
    is_adapter = "adapter_config.json" in names
    config = _config(folder / ("adapter_config.json" if is_adapter else "config.json"))
    if config is None:
        return None
    inside = folder.relative_to(root).as_posix()
    written = "." if inside == "." else f"./{inside}"
    label = _label(folder.resolve().name, taken)
    return FoundModel(name=label, written=written, is_adapter=is_adapter, config=config)


def _config(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _label(name: str, taken: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower() or "model"
    plain = f"m{plain}" if plain[0].isdigit() or plain in _WORDS else plain
    number, label = 2, plain
    while label in taken:
        label, number = f"{plain}_{number}", number + 1
    return label


def _is_supported(model: FoundModel) -> bool:
    return model.config.get("model_type") in {*SUPPORTED, *ENCODERS}


def _parent(adapter: FoundModel, models: Sequence[FoundModel], bases: Sequence[FoundModel]) -> tuple[str | None, str]:
    """What an adapter stands on, and a remark if its files do not say it in so many words."""
    origin = adapter.last_of_origin
    known = [model.name for model in models if Path(model.written).name == origin and model is not adapter]
    if len(known) == 1:
        return known[0], ""
    named = f"its files name `{_shown(origin)}`" if origin else "its files name no base"
    if len(bases) == 1:
        return bases[0].name, f"{named}, which is not here: is `{bases[0].name}` right?"
    return None, f"{named}, and {len(bases)} bases are here"


def _shown(name: str) -> str:
    """Names from files, in a comment of one line."""
    return re.sub(r"[^\x20-\x7e]", "?", name)[:80]


def _spec(
    bases: Sequence[FoundModel],
    tunes: Sequence[tuple[FoundModel, str, str]],
    devices: Sequence[DraftDevice],
    unused: Sequence[tuple[str, str]],
) -> Iterator[str]:
    yield "# Drafted by `blockc init` from the folders here: each model is an app of one tenant. Split them up."
    yield "# The language: docs/language.md. Next: blockc check, blockc compile, blockc viz, blockc serve."
    yield ""
    yield "blockc { edition = 1 }"
    yield ""
    for base in bases:
        dtype = _DTYPES.get(str(base.config.get("dtype") or base.config.get("torch_dtype")))
        inside = f" {{ dtype = {dtype} }}" if dtype else " { }"
        yield f"base {base.name} : hf({_quoted(base.written)}){inside}"
    if tunes:
        yield ""
    width = max((len(model.name) for model, _, _ in tunes), default=0)
    said = ""
    for model, parent, remark in tunes:
        comment = f"  # {remark}" if remark and remark != said else ""
        said = remark
        yield f"finetune {model.name:<{width}} : {parent} {{ weights = {_quoted(model.written)} }}{comment}"
    for written, reason in unused:
        yield f"# left out: {_shown(written)}: {_shown(reason)}"
    yield ""
    yield "cluster box {"
    yield "  node local {"
    for number, device in enumerate(devices):
        yield f"    device d{number} : {device.kind} {{ memory = {device.memory}  reserve = {device.reserve} }}"
    yield "  }"
    yield "}"
    yield ""
    yield "tenant team {"
    for name in [*(base.name for base in bases), *(model.name for model, _, _ in tunes)]:
        yield f"  app {name} {{ model = {name} }}"
    yield "}"


def _quoted(text: str) -> str:
    escaped = (
        text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("\n", "\\n").replace("\t", "\\t")
    )
    return f'"{escaped}"'
