"""Every flipped bit, truncation and forged header is refused with the file and the tensor named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockc.diag import DiagnosticError
from blockc.ir import TensorRef
from blockc.zoo import Zoo
from blockc.zoo.header import HeaderError, parse_header

Make = Callable[..., tuple[TensorRef, bytes]]


@pytest.fixture
def pack(zoo: Zoo, tensor: Make, packs: Callable[[], list[Path]]) -> Path:
    zoo.put_tensors([tensor(i, shape=(16, 16)) for i in range(6)])
    (path,) = packs()
    return path


def refusals(root: Path, refs: list[TensorRef]) -> list[str]:
    """What is said when all tensors are read from a zoo that is opened anew."""
    zoo = Zoo(root)
    said = []
    for ref in refs:
        try:
            zoo.tensor(ref.digest)
        except DiagnosticError as error:
            (item,) = error.diagnostics
            said.append(f"{item.code.id} {item.message} {' '.join(item.notes)}")
    return said


def test_bit_flips(zoo: Zoo, pack: Path, tensor: Make) -> None:
    refs = [tensor(i, shape=(16, 16))[0] for i in range(6)]
    good = pack.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    generator = random.Random(5)
    flips = [generator.randrange(8 * len(good)) for _ in range(350)]
    flips += [8 * generator.randrange(header_end) + generator.randrange(8) for _ in range(150)]
    for flip in flips:
        bad = bytearray(good)
        bad[flip // 8] ^= 1 << flip % 8
        pack.write_bytes(bad)
        said = refusals(zoo.root, refs)
        assert said, f"bit {flip} was not noticed"
        assert all(text.startswith("BC903") and pack.name in text for text in said)
        if flip // 8 >= header_end:
            (text,) = said
            assert any(ref.digest in text for ref in refs)
        else:
            assert len(said) == len(refs)
        found = Zoo(zoo.root).verify()
        assert [item.code.id for item in found] == ["BC903"]


def test_truncations(zoo: Zoo, pack: Path, tensor: Make) -> None:
    refs = [tensor(i, shape=(16, 16))[0] for i in range(6)]
    good = pack.read_bytes()
    for part in range(64):
        pack.write_bytes(good[: len(good) * part // 64])
        said = refusals(zoo.root, refs)
        assert len(said) == len(refs)
        assert all(pack.name in text for text in said)
        assert all(any(ref.digest in text for ref in refs) for text in said)


def test_a_damaged_header_is_healed_by_storing_again(zoo: Zoo, pack: Path, tensor: Make) -> None:
    pack.write_bytes(pack.read_bytes()[:100])
    other = Zoo(zoo.root)
    assert not other.has_tensor(tensor(0, shape=(16, 16))[0].digest)
    other.put_tensors([tensor(i, shape=(16, 16)) for i in range(6)])
    assert not len(other.verify())


def test_damage_does_not_touch_other_packs(zoo: Zoo, pack: Path, tensor: Make) -> None:
    zoo.put_tensors([tensor(100)])
    pack.write_bytes(b"")
    assert bytes(Zoo(zoo.root).tensor(tensor(100)[0].digest).data) == tensor(100)[1]


def test_a_pack_cut_short_under_a_reader(zoo: Zoo, pack: Path, tensor: Make) -> None:
    reader = Zoo(zoo.root)
    pack.write_bytes(pack.read_bytes()[:-10])
    with pytest.raises(DiagnosticError, match=pack.name):
        reader.tensor(tensor(0, shape=(16, 16))[0].digest)


def test_verify_names_all(zoo: Zoo, pack: Path, tensor: Make) -> None:
    good = bytearray(pack.read_bytes())
    good[-1] ^= 1
    good[-16 * 16 * 2 - 1] ^= 1
    pack.write_bytes(good)
    digest = zoo.put_blob(b"x")
    (zoo.root / "blobs" / digest).write_bytes(b"y")
    found = [item.message for item in zoo.verify()]
    assert len(found) == 3
    assert sum(pack.name in message for message in found) == 2
    assert sum(digest in message for message in found) == 1


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_HEADERS: list[tuple[Any, str]] = [
    ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, "overlaps"),
    ({"a": {**ENTRY, "data_offsets": [8, 16]}}, "follows a hole"),
    ({"a": {**ENTRY, "shape": [3]}}, "takes 12 bytes"),
    ({"a": {**ENTRY, "shape": [-2]}}, "list of sizes"),
    ({"a": {**ENTRY, "shape": [True, 2]}}, "list of sizes"),
    ({"a": {**ENTRY, "shape": [2.0]}}, "list of sizes"),
    ({"a": {**ENTRY, "shape": [2**64, 2**64]}}, "list of sizes"),
    ({"a": {**ENTRY, "shape": [1] * 100}}, "list of sizes"),
    ({"a": {**ENTRY, "dtype": "F31"}}, "unknown dtype"),
    ({"a": {**ENTRY, "dtype": ["F32"]}}, "unknown dtype"),
    ({"a": {**ENTRY, "data_offsets": [0]}}, "two offsets"),
    ({"a": {**ENTRY, "extra": 1}}, "exactly"),
    ({"a": [1]}, "exactly"),
    ({"a": ENTRY, "__metadata__": {"k": 1}}, "table of strings"),
    ({"a": {**ENTRY, "shape": [1], "data_offsets": [0, 4]}}, "4 bytes follow"),
    ({"a": {**ENTRY, "shape": [4], "data_offsets": [0, 16]}}, "ends at byte"),
]


@pytest.mark.parametrize(("header", "said"), BAD_HEADERS)
def test_headers(header: Any, said: str) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(HeaderError, match=said) as caught:
        parse_header(text, file_bytes=8 + len(text) + 8)
    assert caught.value.tensor in (None, "a", "b")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b"{" * 100_000,
        b'{"a":' + b"[" * 100_000,
        b'{"a":NaN}',
        b'{"\xff":1}',
        b"[]",
        b"",
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_headers_that_are_not_json(text: bytes) -> None:
    with pytest.raises(HeaderError):
        parse_header(text, file_bytes=8 + len(text) + 8)


def test_absurd_header_sizes(zoo: Zoo, pack: Path) -> None:
    good = pack.read_bytes()
    for size in (2**63, 2**64 - 1, 100_000_001, len(good)):
        pack.write_bytes(size.to_bytes(8, "little") + good[8:])
        (found,) = Zoo(zoo.root).verify()
        assert pack.name in found.message
