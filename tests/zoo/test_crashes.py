"""A crash at any system call leaves what was there or what was to be, and a zoo that works."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockc.diag import Diagnostics
from blockc.ir import TensorRef
from blockc.plan import ExecutionPlan, dump_plan, read_plan
from blockc.zoo import (
    PlanFile,
    Zoo,
    collect,
    import_plan,
    import_zoos,
    publish,
    references,
    verify_zoo,
)
from tests.conftest import Promised
from tests.zoo.plans import files, missing, referred, stored_plan

Make = Callable[..., tuple[TensorRef, bytes]]
CRASHES = "at every fsync or rename: old or new, never mixed"
CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "chmod", "close", "unlink")


@pytest.fixture(autouse=True)
def _disk_without_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes are made up here: nothing has to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Crash(BaseException):
    """Power is gone: nothing that follows happens either."""


class CrashAt:
    """Counts the calls that change the disk; from number ``at`` on none of them does anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.count = 0
        self.at = at
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "close":
                return real(*args, **kwargs)  # the kernel closes a dead process' files
            self.count += 1
            if self.count < self.at:
                return real(*args, **kwargs)
            if name == "write" and self.count == self.at:
                real(args[0], bytes(args[1])[: len(args[1]) // 2])  # half of it may have reached the disk
            raise Crash

        return call


def count_calls(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> int:
    with monkeypatch.context() as patch:
        counter = CrashAt(patch, 1 << 30)
        action()
    return counter.count


def crash(monkeypatch: pytest.MonkeyPatch, at: int, action: Callable[[], object]) -> None:
    with monkeypatch.context() as patch:
        CrashAt(patch, at)
        with pytest.raises(Crash):
            action()


def problems(root: Path) -> list[str]:
    found, _ = verify_zoo(Zoo(root), lambda path, nbytes: None)
    return [item.message for item in found]


@pytest.mark.promise("files")
def test_put_tensors(tmp_path: Path, tensor: Make, monkeypatch: pytest.MonkeyPatch, promised: Promised) -> None:
    old, new = [tensor(i) for i in range(3)], [tensor(i) for i in range(10, 14)]

    def fresh(name: str) -> Zoo:
        Zoo(tmp_path / name, create=True).put_tensors(old)
        return Zoo(tmp_path / name)

    writer = fresh("scratch")
    calls = count_calls(monkeypatch, lambda: writer.put_tensors(new))
    assert calls >= 10
    outcomes = set()
    for at in range(1, calls + 1):
        writer = fresh(f"zoo{at}")
        root = writer.root
        crash(monkeypatch, at, lambda: writer.put_tensors(new))  # noqa: B023 - called at once
        zoo = Zoo(root)
        assert not len(zoo.verify())
        assert all(bytes(zoo.tensor(ref.digest).data) == data for ref, data in old)
        present = {zoo.has_tensor(ref.digest) for ref, _ in new}
        assert len(present) == 1, "a pack is there in full or not at all"
        outcomes |= present
        zoo.put_tensors(new)
        assert all(bytes(zoo.tensor(ref.digest).data) == data for ref, data in new)
        assert len(list((root / "packs").iterdir())) == 2, "leftovers are gone after the next put"
    assert outcomes == {False, True}
    promised("crash while tensors are stored", CRASHES, f"at {calls} calls: old or new", kept=True)


def test_put_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Zoo(tmp_path / "scratch", create=True)
    calls = count_calls(monkeypatch, lambda: scratch.put_blob(b"chat template"))
    for at in range(1, calls + 1):
        root = tmp_path / f"zoo{at}"
        zoo = Zoo(root, create=True)
        with monkeypatch.context() as patch:
            CrashAt(patch, at)
            with pytest.raises(Crash):
                zoo.put_blob(b"chat template")
        assert not len(Zoo(root).verify())
        digest = zoo.put_blob(b"chat template")
        assert Zoo(root).blob(digest) == b"chat template"


def test_leftovers_are_reclaimed(zoo: Zoo, tensor: Make) -> None:
    zoo.put_tensors([tensor(1)])
    leftover = zoo.root / "packs" / f".{'a' * 64}.safetensors.1.abcd.tmp"
    leftover.write_bytes(bytes(1000))
    assert zoo.tensors_bytes() == len(tensor(1)[1])
    assert not len(zoo.verify())
    assert zoo.reclaim() == 1000
    assert not leftover.exists()
    assert zoo.reclaim() == 0


def test_an_error_leaves_no_temporary_file(zoo: Zoo, tensor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Exception, match=r"BC003.*No space left"):
            zoo.put_tensors([tensor(1)])
    assert not list((zoo.root / "packs").iterdir())


def two_plans(root: Path) -> tuple[Zoo, ExecutionPlan, ExecutionPlan]:
    """Plan a, and plan b at another place; with a zoo that holds what a successor of a needs."""
    template = root.parent / "template"
    if not template.exists():
        zoo = Zoo(template / "zoo", create=True)
        for name, variant in (("a.json", 1), ("b.json", 2)):
            publish(stored_plan(zoo, variant=variant), template / name, zoo)
        stored_plan(zoo, variant=3)
    shutil.copytree(template, root)
    zoo = Zoo(root / "zoo")
    return zoo, read_plan((root / "a.json").read_bytes(), "a.json"), stored_plan(zoo, variant=3)


def collected(root: Path) -> None:
    diags = Diagnostics()
    collect(Zoo(root), diags=diags)
    assert not len(diags)


@pytest.mark.promise("files")
def test_a_plan_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: Promised) -> None:
    """After the crash the old plan or the new one lies there, and whichever it is outlives a collection."""
    zoo, _, new = two_plans(tmp_path / "scratch")
    calls = count_calls(monkeypatch, lambda: publish(new, tmp_path / "scratch" / "a.json", zoo))
    assert calls >= 25
    outcomes = set()
    for at in range(1, calls + 1):
        root = tmp_path / str(at)
        zoo, old, new = two_plans(root)
        crash(monkeypatch, at, lambda: publish(new, root / "a.json", zoo))  # noqa: B023 - called at once
        zoo = None  # with the process its lease ends
        lies = (root / "a.json").read_bytes()
        outcomes.add(lies == dump_plan(new))
        assert lies in (dump_plan(old), dump_plan(new))
        assert problems(root / "zoo") == []
        collected(root / "zoo")
        for name in ("a.json", "b.json"):
            assert missing(root / "zoo", root / name) == []
        zoo = Zoo(root / "zoo")
        publish(stored_plan(zoo, variant=3), root / "a.json", zoo)
        zoo = None
        collected(root / "zoo")
        assert [place for place, _ in referred(Zoo(root / "zoo"))] == ["../a.json", "../b.json"]
        assert missing(root / "zoo", root / "a.json") == []
    assert outcomes == {False, True}
    promised("crash while a plan is written", CRASHES, f"at {calls} calls: old or new", kept=True)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Unlinks and fsyncs as they come. Names reach the disk in the order of their folders' fsyncs."""
    seen: list[tuple[str, str]] = []
    unlink = os.unlink
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: seen.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
    )
    monkeypatch.setattr(os, "unlink", lambda path: (seen.append(("unlink", str(path))), unlink(path)))
    return seen


def test_a_new_plan_is_durable_before_the_old_one_is_given_up(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    zoo, old, new = two_plans(tmp_path / "work")
    before = {item.plan: item.file_name for item in references(zoo)}
    events.clear()
    publish(new, tmp_path / "work" / "a.json", zoo)
    given_up = ("unlink", str(zoo.plans / before[hashlib.sha256(dump_plan(old)).hexdigest()]))
    durable = ("fsync", str(tmp_path / "work"))
    referred_to = ("fsync", str(zoo.plans))
    assert events.index(referred_to) < events.index(durable) < events.index(given_up)


def test_what_moves_and_what_is_given_up_is_durable_before_anything_goes(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    root = two_plans(tmp_path / "work")[0].root
    ended = [item for item in references(Zoo(root)) if item.place == "../a.json"]
    events.clear()
    done = collect(Zoo(root), ended=ended, diags=Diagnostics())
    gone = [events.index(("unlink", str(root / "packs" / work.name))) for work in done.packs]
    assert events.index(("unlink", str(root / "plans" / ended[0].file_name))) < events.index(
        ("fsync", str(root / "plans"))
    )
    assert events.index(("fsync", str(root / "plans"))) < min(gone)
    for work, at in zip(done.packs, gone, strict=True):
        if work.keeps:
            previous = max((other for other in gone if other < at), default=0)
            assert ("fsync", str(root / "packs")) in events[previous:at], "the new pack before the old one"
    assert any(work.keeps for work in done.packs)


@pytest.mark.promise("files")
def test_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: Promised) -> None:
    """Wherever it stops, what the plans need is there, and the next one comes to the same end."""

    def begun(name: str) -> Callable[[], object]:
        zoo, _, _ = two_plans(tmp_path / name)
        root = zoo.root
        del zoo
        ended = [item for item in references(Zoo(root)) if item.place == "../a.json"]
        return lambda: collect(Zoo(root), ended=ended, diags=Diagnostics())

    calls = count_calls(monkeypatch, begun("scratch"))
    assert calls >= 20
    final = files(tmp_path / "scratch" / "zoo")
    outcomes = set()
    for at in range(1, calls + 1):
        root = tmp_path / str(at)
        crash(monkeypatch, at, begun(str(at)))
        assert problems(root / "zoo") == []
        assert missing(root / "zoo", root / "b.json") == []
        forgotten = len(references(Zoo(root / "zoo"))) == 1
        outcomes.add(forgotten)
        if not forgotten:
            assert missing(root / "zoo", root / "a.json") == [], "as long as it is referred to"
            continue
        collected(root / "zoo")
        assert files(root / "zoo") == final
        assert missing(root / "zoo", root / "b.json") == []
    assert outcomes == {False, True}
    promised("crash while the zoo is collected", CRASHES, f"at {calls} calls: old or new", kept=True)


@pytest.mark.parametrize("only_a_plan", [False, True])
def test_an_import(only_a_plan: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is referred to only once all of it is there."""
    source = Zoo(tmp_path / "from" / "zoo", create=True)
    plan = stored_plan(source)
    publish(plan, tmp_path / "from" / "a.json", source)
    wanted = PlanFile(data=dump_plan(plan), path=tmp_path / "from" / "a.json", host=None)

    def importing(root: Path) -> Callable[[], object]:
        target = Zoo(root, create=True)
        if only_a_plan:
            return lambda: import_plan(target, [source], wanted, diags=Diagnostics())
        return lambda: import_zoos(target, [source], diags=Diagnostics())

    calls = count_calls(monkeypatch, importing(tmp_path / "scratch"))
    assert calls >= 30
    for at in range(1, calls + 1):
        root = tmp_path / f"to{at}"
        crash(monkeypatch, at, importing(root))
        assert problems(root) == []
        for item in references(Zoo(root)):
            assert missing(root, tmp_path / "from" / Path(item.place).name) == []
        importing(root)()
        assert problems(root) == []
        assert missing(root, tmp_path / "from" / "a.json") == []
    assert problems(source.root) == []
