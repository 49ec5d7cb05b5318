"""The files that belong to a model version beside its weights: tokenizer, chat template, generation defaults."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockc.diag import Diagnostics, Span
from blockc.tune.checkpoint import read_json
from blockc.zoo import Zoo

_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def check_assets(directory: Path, seen: set[str], *, written: str, diags: Diagnostics, at: Span) -> None:
    """Report files that no server could load (BC203). ``seen``: digests of those that are known to be fine."""
    for name in _NAMES:
        path = directory / name
        if path.suffix == ".json" and path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest not in seen and read_json(path, written=written, diags=diags, at=at) is not None:
                seen.add(digest)


def store_assets(directories: tuple[Path, ...], zoo: Zoo) -> dict[str, str]:
    """File name -> digest of the blob. The first directory that has a tokenizer gives all tokenizer files.

    ``directories`` go from the fine-tune to its base: an adapter without tokenizer files speaks its base's language;
    one that ships some brings its own chat template with them.
    """
    found: dict[str, str] = {}
    for directory in directories:
        if (directory / "tokenizer.json").is_file():
            for name in _NAMES[:4]:
                if (directory / name).is_file():
                    found[name] = zoo.put_blob((directory / name).read_bytes())
            break
    for directory in directories:
        path = directory / "generation_config.json"
        if path.is_file():
            found[path.name] = zoo.put_blob(path.read_bytes())
            break
    return found


def stop_token_ids(
    directories: tuple[Path, ...], config: Mapping[str, Any], *, diags: Diagnostics, at: Span
) -> tuple[int, ...]:
    """Ids that end an answer: of the generation defaults if they name any, else of the model's configuration."""
    for directory in directories:
        path = directory / "generation_config.json"
        if path.is_file():
            defaults = read_json(path, written=directory.name, diags=diags, at=at) or {}
            ids = _ids(defaults.get("eos_token_id"))
            if ids:
                return ids
    return _ids(config.get("eos_token_id"))


def _ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, list):
        return tuple(sorted({item for item in value if isinstance(item, int) and not isinstance(item, bool)}))
    return ()
