"""A checkpoint directory in Hugging Face layout: which tensors it has and where. Reads safetensors only.

Pickled weights are refused (BC206): reading them runs code. Nothing is loaded until a tensor is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from blockc.diag import Diagnostics, Span
from blockc.ir.strict_json import StrictJsonError, parse_strict_json

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """``files`` maps tensor names to the safetensors file that holds each; ``shapes`` to their shapes."""

    root: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

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
    files: list[Path] | None
    if single.is_file():
        files = [single]
    elif index is not None and (root / index).is_file():
        files = _sharded(root, root / index, written=written, diags=diags, at=at)
    else:
        _report_absent(root, stem, written=written, diags=diags, at=at)
        return None
    if files is None:
        return None
    found: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
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
                    shapes[name] = tuple(handle.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            diags.report(
                "BC203",
                f"{file.name} of {written} is damaged",
                at=at,
                notes=(str(error).splitlines()[0][:200],),
                help="copy the file again, or export the checkpoint again",
            )
            return None
    return Checkpoint(root=root, files=found, shapes=shapes)


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


def _sharded(root: Path, index: Path, *, written: str, diags: Diagnostics, at: Span) -> list[Path] | None:
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
    return [root / name for name in names]


def _report_absent(root: Path, stem: str, *, written: str, diags: Diagnostics, at: Span) -> None:
    pickled = sorted(path.name for path in root.glob("*") if path.suffix in _PICKLES) if root.is_dir() else []
    if pickled:
        diags.report(
            "BC206",
            f"{written} has only pickled weights ({pickled[0]})",
            at=at,
            notes=("reading a pickle runs whatever code it holds",),
            help="convert them to safetensors with the library that wrote them",
        )
        return
    diags.report(
        "BC201",
        f"no {stem}.safetensors in {written}",
        at=at,
        label="looked here",
        help="the path is relative to the file of the spec; point it at a directory in Hugging Face layout",
    )
