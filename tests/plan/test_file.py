"""A plan survives its file, and a file that is anything else is refused in words."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockc.diag import DiagnosticError
from blockc.ir import json_digest
from blockc.plan import ExecutionPlan, dump_plan, load_plan, write_plan
from tests.plan.fleet import fleet_plan, wider


@pytest.fixture(scope="module")
def plan() -> ExecutionPlan:
    return fleet_plan()


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[bytes], tuple[str, str]]:
    """The code and message with which a file of these bytes is refused."""

    def load(data: bytes) -> tuple[str, str]:
        path = tmp_path / "plan.json"
        path.write_bytes(data)
        with pytest.raises(DiagnosticError) as caught:
            load_plan(path)
        (item,) = caught.value.diagnostics
        assert str(path) in item.message
        assert item.help
        assert len(item.message) < 1000
        return item.code.id, item.message

    return load


def test_round_trip(plan: ExecutionPlan, tmp_path: Path) -> None:
    write_plan(plan, tmp_path / "deep" / "plan.json")
    assert load_plan(tmp_path / "deep" / "plan.json") == plan
    data = dump_plan(plan)
    assert data == dump_plan(load_plan(tmp_path / "deep" / "plan.json"))
    assert data.endswith(b"}\n")
    assert data.isascii()
    assert data.count(b"\n") == 1


def test_layout_of_the_text_does_not_matter(plan: ExecutionPlan, tmp_path: Path) -> None:
    """A plan that went through a formatter is still the same plan."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(dump_plan(plan)), indent=2))
    assert load_plan(path) == plan


def test_a_thousand_apps_are_small(plan: ExecutionPlan) -> None:
    assert len(dump_plan(wider(plan, 1000))) < 1 << 20


def test_edits_are_noticed(plan: ExecutionPlan, refused: Callable[[bytes], tuple[str, str]]) -> None:
    document = json.loads(dump_plan(plan))
    document["plan"]["batching"]["max_rows"] = 9
    code, message = refused(json.dumps(document).encode())
    assert code == "BC901"
    assert "changed after it was compiled" in message


def test_versions_come_before_everything(plan: ExecutionPlan, refused: Callable[[bytes], tuple[str, str]]) -> None:
    for version in (2, 0, "1", None, 1.5, [1]):
        code, _ = refused(json.dumps({"digest": "?", "plan": {"format_version": version, "new": 1}}).encode())
        assert code == "BC902"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"plan"',
        b"{}",
        b'{"plan": []}',
        b'{"plan": {"format_version": 1}, "plan": {"format_version": 1}}',
        b'{"plan": {"format_version": NaN}}',
        b'{"plan": {"format_version": 1, "x": 1e999}}',
        b'{"plan": {"format_version": 1, "x": Infinity}}',
        b'{"plan": ' + b"9" * 10_000 + b"}",
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b"\xff\xfe{}",
        b'\xef\xbb\xbf{"plan": {}}',
        b'{"plan": {"format_version": 1, "compiler": "\\ud800"}}',
        bytes(1000),
    ],
)
def test_other_files(data: bytes, refused: Callable[[bytes], tuple[str, str]]) -> None:
    code, _ = refused(data)
    assert code in ("BC901", "BC902")


def signed(content: Any) -> bytes:
    return json.dumps({"digest": json_digest("plan v1", content), "plan": content}).encode()


def test_schema(plan: ExecutionPlan, refused: Callable[[bytes], tuple[str, str]]) -> None:
    content = json.loads(dump_plan(plan))["plan"]
    for change in (
        {"surprise": 1},
        {"chains": 3},
        {"target": "tpu"},
        {"devices": [{"address": 1}]},
        {"apps": None},
    ):
        code, message = refused(signed({**content, **change}))
        assert code == "BC901"
        assert next(iter(change)) in message


def test_truncations_and_flips(plan: ExecutionPlan, refused: Callable[[bytes], tuple[str, str]]) -> None:
    good = dump_plan(plan)
    for part in range(64):
        assert refused(good[: len(good) * part // 64])[0] in ("BC901", "BC902")
    generator = random.Random(3)
    for _ in range(150):
        bad = bytearray(good)
        place = generator.randrange(len(good) - 1)  # the last byte is a newline, which says nothing
        bad[place] ^= 1 << generator.randrange(8)
        assert refused(bytes(bad))[0] in ("BC901", "BC902")


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(DiagnosticError, match="BC003"):
        load_plan(tmp_path / "none.json")
    with pytest.raises(DiagnosticError, match="BC003"):
        load_plan(tmp_path)
    huge = tmp_path / "huge.json"
    huge.touch()
    os.truncate(huge, 1 << 40)  # sparse
    with pytest.raises(DiagnosticError, match="BC901"):
        load_plan(huge)


def test_a_failed_write_leaves_the_old_file(
    plan: ExecutionPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    write_plan(plan, path)
    other = wider(plan, 5)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiagnosticError, match="BC003"):
            write_plan(other, path)
    assert load_plan(path) == plan
    assert os.listdir(tmp_path) == ["plan.json"]
