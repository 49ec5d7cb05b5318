"""A checkpoint directory in Hugging Face layout: which tensors it has and where. Reads safetensors only.

Pickled weights are refused (BC206): reading them runs code. Nothing is loaded until a tensor is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from blockc.diag import Diagnostics, Span
from blockc.ir.strict_json import StrictJsonError, parse_strict_json
from blockc.zoo.header import LENGTH_BYTES, HeaderError, header_bytes, parse_header

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LARGEST_HEADER_READ = 10_000_000  # bytes: what is larger is not looked through for the guilty tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """``files`` maps tensor names to the safetensors file that holds each; ``dtypes`` are spelled as in its header."""

    root: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    def read(self, name: str) -> Any:
        """The tensor (torch, CPU). Raises :class:`OSError` or SafetensorError if the file changed under us."""
        with safe_open(self.files[name], framework="pt") as handle:
            return handle.get_tensor(name)


def open_checkpoint(
    root: Path, *, stem: str, index: str | None, written: str, diags: Diagnostics, at: Span
) -> Checkpoint | None:
    """Open ``<stem>.safetensors``, else the shards that ``index`` lists. Problems go to ``diags``; then None.

    Where both exist, transformers reads the single file.
    """
    single = root / f"{stem}.safetensors"
    listed: Mapping[str, Path] = {}
    if single.is_file():
        files = [single]
    elif index is not None and (root / index).is_file():
        in_index = _listed(root, root / index, written=written, diags=diags, at=at)
        if in_index is None:
            return None
        listed = in_index
        files = sorted(set(listed.values()))
    else:
        _report_absent(root, stem, written=written, diags=diags, at=at)
        return None
    found: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - not a mapping
                    if name in found:
                        diags.report(
                            "BC203", f"the tensor `{name}` stands in two files of {written}", at=at,
                            notes=(f"{found[name].name} and {file.name}",), help="export the checkpoint again",
                        )  # fmt: skip
                        return None
                    found[name] = file
                    tensor = handle.get_slice(name)
                    shapes[name], dtypes[name] = tuple(tensor.get_shape()), tensor.get_dtype()
        except (SafetensorError, OSError) as error:
            diags.report(
                "BC203",
                f"{file.name} of {written} is damaged",
                at=at,
                notes=(_damage(file, error),),
                help="copy the file again, or export the checkpoint again",
            )
            return None
    if strays := sorted(name for name, file in listed.items() if found.get(name) != file):
        diags.report(
            "BC203", f"{index} of {written} does not belong to its files", at=at,
            notes=(f"`{strays[0][:200]}` is not in {listed[strays[0]].name}, which should hold it",),
            help="index and files come from different exports: copy the checkpoint again",
        )  # fmt: skip
        return None
    return Checkpoint(root=root, files=found, shapes=shapes, dtypes=dtypes)


def only_vectors(root: Path) -> bool:
    """Whether `model.safetensors` is there and holds nothing of two dimensions: no whole model is like that."""
    try:
        with safe_open(root / "model.safetensors", framework="pt") as handle:
            shapes = [handle.get_slice(name).get_shape() for name in handle.keys()]  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError):
        return False
    return bool(shapes) and all(len(shape) == 1 for shape in shapes)


def _damage(file: Path, error: Exception) -> str:
    """What is wrong with a file that safetensors refuses, with the tensor where one is to blame."""
    try:
        with file.open("rb") as opened:
            file_bytes = os.fstat(opened.fileno()).st_size
            size = header_bytes(opened.read(LENGTH_BYTES), file_bytes)
            if size <= _LARGEST_HEADER_READ:
                parse_header(opened.read(size), file_bytes=file_bytes)
    except HeaderError as found:
        return f"{found.tensor[:200]}: {found}" if found.tensor else str(found)
    except OSError:
        pass
    return str(error).splitlines()[0][:200]


def read_json(path: Path, *, written: str, diags: Diagnostics, at: Span) -> dict[str, Any] | None:
    """A JSON object from a file that belongs to a model; problems go to ``diags``."""
    try:
        value = parse_strict_json(path.read_bytes())
    except FileNotFoundError:
        diags.report(
            "BC201", f"no {path.name} in {written}", at=at, label="looked here",
            help="the path is relative to the file of the spec; point it at a directory in Hugging Face layout",
        )  # fmt: skip
        return None
    except (OSError, StrictJsonError) as error:
        diags.report(
            "BC203", f"{path.name} in {written} cannot be read", at=at, notes=(str(error).splitlines()[0][:200],),
            help="it must be a JSON object in UTF-8",
        )  # fmt: skip
        return None
    if not isinstance(value, dict):
        diags.report("BC203", f"{path.name} in {written} is not a JSON object", at=at, help="export the model again")
        return None
    return value


def _listed(root: Path, index: Path, *, written: str, diags: Diagnostics, at: Span) -> dict[str, Path] | None:
    """Tensor -> the shard that holds it, as the index says."""
    listing = read_json(index, written=written, diags=diags, at=at)
    if listing is None:
        return None
    weight_map = listing.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        diags.report("BC203", f"{index.name} of {written} has no `weight_map`", at=at, help="export the model again")
        return None
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        diags.report(
            "BC206", f"{index.name} of {written} names the file `{outside[0][:80]}`", at=at,
            help="shards are safetensors files beside their index",
        )  # fmt: skip
        return None
    absent = [name for name in names if not (root / name).is_file()]
    if absent:
        diags.report(
            "BC201", f"{len(absent)} of {len(names)} shards are missing from {written}", at=at,
            notes=(f"first: {absent[0]}",), help="download the checkpoint again",
        )  # fmt: skip
        return None
    return {tensor: root / name for tensor, name in weight_map.items()}


def report_pickles(names: list[str], *, written: str, diags: Diagnostics, at: Span | None) -> None:
    """Refuse a model that has no other weights than these files."""
    diags.report(
        "BC206", f"{written} has only pickled weights ({min(names)})", at=at,
        notes=("reading a pickle runs whatever code it holds",),
        help="convert them to safetensors with the library that wrote them",
    )  # fmt: skip


def _report_absent(root: Path, stem: str, *, written: str, diags: Diagnostics, at: Span) -> None:
    pickled = [path.name for path in root.glob("*") if path.suffix in PICKLES] if root.is_dir() else []
    if pickled:
        report_pickles(pickled, written=written, diags=diags, at=at)
        return
    diags.report(
        "BC201", f"no {stem}.safetensors in {written}", at=at, label="looked here",
        help="the path is relative to the file of the spec; point it at a directory in Hugging Face layout",
    )  # fmt: skip
