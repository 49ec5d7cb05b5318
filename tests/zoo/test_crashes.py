"""A crash at any system call leaves what was there or what was to be, and a zoo that works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockc.ir import TensorRef
from blockc.zoo import Zoo

Make = Callable[..., tuple[TensorRef, bytes]]
CALLS = ("open", "write", "fsync", "rename", "close", "unlink")


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


def test_put_tensors(tmp_path: Path, tensor: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = [tensor(i) for i in range(3)], [tensor(i) for i in range(10, 14)]
    scratch = Zoo(tmp_path / "scratch", create=True)
    scratch.put_tensors(old)
    calls = count_calls(monkeypatch, lambda: scratch.put_tensors(new))
    assert calls >= 8
    outcomes = set()
    for at in range(1, calls + 1):
        root = tmp_path / f"zoo{at}"
        Zoo(root, create=True).put_tensors(old)
        with monkeypatch.context() as patch:
            CrashAt(patch, at)
            with pytest.raises(Crash):
                Zoo(root).put_tensors(new)
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
