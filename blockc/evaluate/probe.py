"""What models are compared on: texts of a file, or token ids that the model itself finds likely.

A file is plain text, cut into pieces of lines, or JSON lines with a list of token ids each. Without one, seeded random
ids stand in: they reach every part of a model but are not what its users write, and the evidence says so.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockc.diag import Diagnostics, Span
from blockc.graph import Chain
from blockc.spec.deployment import LocalSource
from blockc.zoo import Zoo

_LENGTH = 128
_TEXTS = 16
_RANDOM_TEXTS = 8
_RANDOM_LENGTH = 48
_LARGEST_FILE = 16 << 20


class ProbeError(ValueError):
    """A probe file that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """``texts``: token ids; ``digest``: of them; ``source``: where they come from, in words."""

    texts: tuple[tuple[int, ...], ...]
    source: str

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


def random_probe(vocab_size: int, longest: int) -> Probe:
    """Seeded ids."""
    rng = random.Random(0)  # noqa: S311 - not a secret
    length = min(_RANDOM_LENGTH, longest)
    texts = tuple(tuple(rng.randrange(vocab_size) for _ in range(length)) for _ in range(_RANDOM_TEXTS))
    return Probe(texts=texts, source="random token ids")


def read_probe(
    path: Path, written: str, *, tokenize: Callable[[str], Sequence[int]] | None, vocab_size: int, longest: int
) -> Probe:
    """The first texts of a file. ``tokenize`` None: the model has no tokenizer. Raises `ProbeError`, OSError."""
    if path.stat().st_size > _LARGEST_FILE:
        raise ProbeError(f"it is larger than {_LARGEST_FILE >> 20} MiB")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ProbeError("it is not UTF-8") from error
    if path.suffix == ".jsonl":
        found: list[Sequence[int]] = [_ids(line, vocab_size) for line in lines if line.strip()]
    else:
        if tokenize is None:
            raise ProbeError("it is text, and the model has no tokenizer.json; write token ids as JSON lines")
        found = _pieces(tokenize("\n".join(lines)), min(_LENGTH, longest))
    texts = tuple(tuple(ids[:longest]) for ids in found if len(ids) > 1)[:_TEXTS]
    if not texts:
        raise ProbeError("it holds no text of two tokens or more")
    return Probe(texts=texts, source=written)


def probe_of(chain: Chain, source: LocalSource | None, zoo: Zoo) -> Probe:
    """The probe of a chain: a file's texts in its own tokens, or random ones. Raises `ProbeError`, OSError."""
    path = chain.path
    if source is None:
        return random_probe(path.vocab_size, path.max_model_len)
    digest = chain.assets.get("tokenizer.json")
    tokenize = None
    if digest is not None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(zoo.blob(digest).decode())
        tokenize = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    return read_probe(
        source.path, source.written, tokenize=tokenize, vocab_size=path.vocab_size, longest=path.max_model_len
    )


def report_probe(error: ProbeError | OSError, source: LocalSource, *, at: Span | None, diags: Diagnostics) -> None:
    """Report that a probe cannot be used."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    diags.report(
        "BC201" if isinstance(error, OSError) else "BC203",
        f"the probe {source.written} cannot be used: {reason}", at=at,
        help="a probe is a text file, or JSON lines with a list of token ids each",
    )  # fmt: skip


def _pieces(ids: Sequence[int], length: int) -> list[Sequence[int]]:
    """Spread over the whole file."""
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    step = max(1, len(pieces) // _TEXTS)
    return pieces[::step]


def _ids(line: str, vocab_size: int) -> list[int]:
    try:
        ids = json.loads(line)
    except ValueError as error:
        raise ProbeError("a line is no JSON") from error
    if not isinstance(ids, list) or not all(type(item) is int and 0 <= item < vocab_size for item in ids):
        raise ProbeError(f"a line is no list of token ids below {vocab_size}")
    return ids
