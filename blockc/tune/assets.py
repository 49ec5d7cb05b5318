"""The files that belong to a model version beside its weights: tokenizer, chat template, generation defaults.

A file that is there and cannot be read is an error (BC203): without it the model would answer, and answer wrongly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockc.diag import Diagnostics, Span
from blockc.tune.checkpoint import read_json
from blockc.zoo import Zoo

_TOKENIZER = "tokenizer.json"
_NAMES = (
    _TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
# Files that say how to make tokens without being a whole tokenizer that is understood here.
_FRAGMENTS = (*_NAMES[1:4], "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "added_tokens.json")


def check_assets(directory: Path, seen: set[str], *, written: str, diags: Diagnostics, at: Span) -> None:
    """Report files that no server could load (BC203). ``seen``: digests of those that are known to be fine."""
    for name in _NAMES:
        path = directory / name
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest not in seen and _intact(path, written=written, diags=diags, at=at):
                seen.add(digest)


def store_assets(directories: tuple[Path, ...], zoo: Zoo, *, diags: Diagnostics, at: Span) -> dict[str, str]:
    """File name -> digest of the blob. The first directory that has a tokenizer gives all tokenizer files.

    ``directories`` go from the fine-tune to its base: an adapter without tokenizer files speaks its base's language;
    one that ships some brings its own chat template with them, and must ship a whole tokenizer (BC203).
    """
    found: dict[str, str] = {}
    nearest = next((place for place, root in enumerate(directories) if (root / _TOKENIZER).is_file()), None)
    if nearest is not None:
        _refuse_fragments(directories[:nearest], diags=diags, at=at)
        for name in _NAMES[:4]:
            path = directories[nearest] / name
            if path.is_file():
                found[name] = zoo.put_blob(path.read_bytes())
    for directory in directories:
        path = directory / "generation_config.json"
        if path.is_file():
            found[path.name] = zoo.put_blob(path.read_bytes())
            break
    return found


def tokens_without_rows(directory: Path, vocab_size: int) -> list[str]:
    """Added tokens of the tokenizer that lies there, which was found to be intact, whose ids no vocabulary reaches."""
    path = directory / _TOKENIZER
    added = json.loads(path.read_bytes()).get("added_tokens") or [] if path.is_file() else []
    return [str(token["content"]) for token in added if token["id"] >= vocab_size]


def stop_token_ids(
    directories: tuple[Path, ...], config: Mapping[str, Any], *, diags: Diagnostics, at: Span
) -> tuple[int, ...]:
    """Ids that end an answer: of the generation defaults if they name any, else of the model's configuration."""
    for directory in directories:
        path = directory / "generation_config.json"
        if path.is_file():
            defaults = read_json(path, written=directory.name, diags=diags, at=at) or {}
            ids = _ids(defaults.get("eos_token_id"))
            if ids is None:
                diags.report(
                    "BC203", f"`eos_token_id` in {path.name} of {directory.name} is neither an id nor a list of ids",
                    at=at, help="correct the file: without these ids answers would not end",
                )  # fmt: skip
            if ids:
                return ids
    return _ids(config.get("eos_token_id")) or ()


def _ids(value: Any) -> tuple[int, ...] | None:
    """Sorted ids, empty if nothing is said; None if what is said is not understood."""
    given = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in given):
        return None
    return tuple(sorted(set(given)))


def _refuse_fragments(directories: tuple[Path, ...], *, diags: Diagnostics, at: Span) -> None:
    """A fine-tune with tokenizer files of its own must not be served with its base's tokenizer in their place."""
    for directory in directories:
        if own := [name for name in _FRAGMENTS if (directory / name).is_file()]:
            diags.report(
                "BC203", f"{directory.name} has {own[0]} and no {_TOKENIZER}", at=at,
                notes=("its own files would be passed over in favour of its base's tokenizer",),
                help="save the whole tokenizer beside it with transformers, or remove these files",
            )  # fmt: skip


def _intact(path: Path, *, written: str, diags: Diagnostics, at: Span) -> bool:
    if path.name != _TOKENIZER and path.suffix == ".json":
        return read_json(path, written=written, diags=diags, at=at) is not None
    try:
        text = path.read_bytes().decode("utf-8")
        if path.name == _TOKENIZER:
            from tokenizers import Tokenizer

            Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        diags.report(
            "BC203", f"{path.name} in {written} cannot be read", at=at,
            notes=((str(error).splitlines() or [""])[0][:200],), help="copy it again, or save the tokenizer again",
        )  # fmt: skip
        return False
    return True
