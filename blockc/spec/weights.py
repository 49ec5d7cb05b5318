"""Look at the files of local models, fine-tunes and probes, without reading a tensor.

In: a deployment. Out: BC201 where one is not there or lacks what a model or a fine-tune needs, BC206 where
its weights are pickled; an assumed fine-tune has no folder. Invariant: reads directory listings
and, where there is one, the index of sharded weights; imports nothing heavy.
"""

from __future__ import annotations

import json
from pathlib import Path

from blockc.diag import Diagnostics, Span
from blockc.fine_tunes import BIAS, FULL
from blockc.spec.deployment import Deployment, FineTuneKind, LocalSource

_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_MAX_INDEX_BYTES = 64 << 20


def check_weights(deployment: Deployment, diags: Diagnostics, *, configuration_only: bool = False) -> None:
    """Report local sources that cannot be loaded. ``configuration_only``: their weights may be absent."""
    tensors = not configuration_only
    for base in deployment.bases.values():
        if isinstance(base.source, LocalSource):
            _check_folder(base.source, f"the base `{base.name}`", "full", base.source_span, diags, tensors=tensors)
        if base.quantize is not None:
            _check_probe(base.quantize.probe, base.quantize_span, diags)
    _check_probe(deployment.policy.share.probe, deployment.policy.share_span, diags)
    for tune in deployment.fine_tunes.values():
        if isinstance(tune.source, LocalSource):
            what = f"the fine-tune `{tune.name}`"
            _check_folder(tune.source, what, tune.kind, tune.source_span, diags, tensors=tensors)


def _check_probe(source: LocalSource | None, at: Span | None, diags: Diagnostics) -> None:
    if source is not None and not source.path.is_file():
        diags.report("BC201", f"no file `{source.written}` for the probe", at=at, help=_how_made(source))


def _check_folder(
    source: LocalSource, what: str, kind: FineTuneKind | None, at: Span, diags: Diagnostics, *, tensors: bool
) -> None:
    try:
        names = {entry.name for entry in source.path.iterdir()}
    except FileNotFoundError:
        message = f"no folder `{source.written}` for {what}"
        diags.report("BC201", message, at=at, help=_how_made(source))
        return
    except NotADirectoryError:
        message = f"`{source.written}` is a file; {what} needs the folder that holds it"
        diags.report("BC201", message, at=at, help=_how_made(source))
        return
    except OSError as error:
        message = f"cannot read `{source.written}` for {what}: {error.strerror}"
        diags.report("BC201", message, at=at, help=_how_made(source))
        return
    wanted = _wanted_config(kind, names)
    missing = [wanted] if wanted not in names and kind != BIAS else []
    if tensors and not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith(_PICKLED) and name != "training_args.bin")
        if pickled:
            message = f"{what} has pickled weights only: `{pickled[0]}`"
            help_ = "pickle runs code when read; convert the file to safetensors"
            diags.report("BC206", message, at=at, help=help_)
        else:
            missing.append("*.safetensors")
    if missing:
        listed = " and no ".join(f"`{name}`" for name in missing)
        message = f"no {listed} in `{source.written}` for {what}"
        help_ = _how_made(source)
        if kind == FULL and "adapter_config.json" in names:
            help_ = f"this is the folder of an adapter\n{help_}"
        elif kind not in (None, FULL) and "config.json" in names:
            help_ = f"this is the folder of a full model; leave `kind` out, or state `full`\n{help_}"
        elif missing == ["*.safetensors"]:
            help_ += "\n`--target sim` plans without weights"
        diags.report("BC201", message, at=at, help=help_)
    if tensors:
        _check_shards(source.path, source.written, what, names, at, diags)


def _wanted_config(kind: FineTuneKind | None, names: set[str]) -> str:
    if kind not in (None, FULL):
        return "adapter_config.json"
    if kind == FULL or "config.json" in names:
        return "config.json" if "adapter_config.json" not in names or kind else "adapter_config.json"
    return "adapter_config.json"


def _check_shards(folder: Path, written: str, what: str, names: set[str], at: Span, diags: Diagnostics) -> None:
    """Report shards that the index names and that are not there (a download that broke off)."""
    index = "model.safetensors.index.json"
    if index not in names:
        return
    try:
        with (folder / index).open("rb") as file:
            document = json.loads(file.read(_MAX_INDEX_BYTES))
        shards = set(document["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        message = f"`{index}` in `{written}` cannot be understood"
        diags.report("BC203", message, at=at, help="fetch the model again")
        return
    absent = sorted(shard for shard in shards if isinstance(shard, str) and shard not in names)
    if absent:
        message = f"{what} lacks {len(absent)} of {len(shards)} shards, such as `{absent[0]}`"
        diags.report("BC201", message, at=at, help="fetch the model again")


def _how_made(source: LocalSource) -> str:
    return f"`{source.written}` is {source.path}; relative paths start at the folder of the spec"
