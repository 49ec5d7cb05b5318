"""Every flipped bit, truncation and forged header is refused with the file and the tensor named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockc.diag import Diagnostic, DiagnosticError
from blockc.ir import TensorRef
from blockc.zoo import Zoo, publish, references, verify_zoo
from blockc.zoo.header import HeaderError, parse_header
from tests.conftest import Promised
from tests.zoo.plans import stored_plan

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


@pytest.mark.promise("files")
def test_bit_flips(zoo: Zoo, pack: Path, tensor: Make, promised: Promised) -> None:
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
    figure = f"{len(flips)} of {len(flips)} noticed, file and tensor named"
    promised("bit flips in a pack", "500: refused, file and tensor named", figure, kept=len(flips) >= 500)


@pytest.mark.promise("files")
def test_truncations(zoo: Zoo, pack: Path, tensor: Make, promised: Promised) -> None:
    refs = [tensor(i, shape=(16, 16))[0] for i in range(6)]
    good = pack.read_bytes()
    for part in range(64):
        pack.write_bytes(good[: len(good) * part // 64])
        said = refusals(zoo.root, refs)
        assert len(said) == len(refs)
        assert all(pack.name in text for text in said)
        assert all(any(ref.digest in text for ref in refs) for text in said)
    figure = f"64 of 64, each naming the file and all {len(refs)} tensors"
    promised("truncations of a pack", "at every 1/64: refused, file and tensor named", figure, kept=True)


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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A zoo with a plan: packs, blobs and a reference."""
    zoo = Zoo(tmp_path / "whole", create=True)
    publish(stored_plan(zoo), tmp_path / "plan.json", zoo)
    return zoo.root


def reports(root: Path) -> list[Diagnostic]:
    return list(verify_zoo(Zoo(root), lambda path, nbytes: None)[0])


def damage_of(path: Path) -> list[Diagnostic]:
    """What is said of the zoo that holds ``path``; what plans need is looked at only where it is one's reference."""
    root = path.parent.parent
    return reports(root) if path.parent.name == "plans" else list(Zoo(root).verify())


def test_five_hundred_flips_anywhere_in_a_zoo(root: Path) -> None:
    """Packs, blobs and references: each is named, and the tensor if it is one's."""
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    assert {path.parent.name for path in paths} == {"packs", "blobs", "plans"}
    assert reports(root) == []
    generator = random.Random(11)
    for turn in range(500):
        path = paths[turn % len(paths)]
        good = path.read_bytes()
        bad = bytearray(good)
        bit = generator.randrange(8 * len(good))
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        found = damage_of(path)
        named = [item.message for item in found if item.code.id == "BC903"]
        assert any(path.name in message for message in named), f"bit {bit} of {path.parent.name}/{path.name}"
        if path.parent.name == "packs" and bit // 8 >= 8 + int.from_bytes(good[:8], "little"):
            (message,) = named
            (span,) = [span for span in Zoo(root).packs()[path.name] if span.start <= bit // 8 < span.end]
            assert span.name in message
        path.write_bytes(good)
    assert reports(root) == []


def test_truncations_of_every_file_of_a_zoo(root: Path) -> None:
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock"):
        good = path.read_bytes()
        for part in range(64):
            path.write_bytes(good[: len(good) * part // 64])
            assert any(path.name in item.message for item in damage_of(path) if item.code.id == "BC903")
        path.write_bytes(good)
    assert reports(root) == []


def test_every_file_that_is_gone_is_named_by_the_plan_that_needs_it(root: Path) -> None:
    (reference,) = references(Zoo(root))
    for path in sorted((root / "packs").iterdir()) + sorted((root / "blobs").iterdir()):
        lost = [span.name for span in Zoo(root).packs().get(path.name, ())] or [path.name]
        kept = path.rename(path.with_name("aside"))
        said = [item for item in reports(root) if item.code.id == "BC904"]
        kept.rename(path)
        for digest in lost:
            assert any(digest in note for item in said for note in item.notes), f"{path.name}: {digest}"
        assert any(reference.plan[:12] in item.message for item in said)
