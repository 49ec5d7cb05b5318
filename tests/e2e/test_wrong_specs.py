"""A spec or a command that is wrong: what, where, why, what to do; the exit code; nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.fleet import copied


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("specs"), "base", "german")


@pytest.mark.parametrize(
    ("right", "wrong", "code", "words"),
    [
        ("model = german", "model = germna", "BC101", ("`germna`", "did you mean `german`?")),
        ("1GiB", "1G", "BC105", ("`1G` could mean", "write `1GB` or `1GiB`")),
        ("1GiB", "5rps", "BC104", ("`memory` of `device`", "the rate `5rps`")),
        ('"./german"', '"./germna"', "BC201", ("`./germna`", "for the fine-tune `german`", "relative paths start")),
        ("model = german }", "model = german", "BC002", ("never closed", "close it with")),
        ("reserve", "reserv", "BC102", ("`reserv`", "did you mean `reserve`?")),
    ],
)
@pytest.mark.parametrize("command", ["check", "compile"])
def test_a_wrong_word_is_shown_where_it_stands(blockc, folder: Path, command, right, wrong, code, words):
    spec = folder / "wrong.blk"
    spec.write_text((folder / "small.blk").read_text().replace(right, wrong))
    ended = blockc(command, spec, *(("-o", folder / "out" / "plan.json") if command == "compile" else ()))
    assert ended.code == 1
    assert ended.out == ""
    assert f"error[{code}]" in ended.errors
    assert "wrong.blk:" in ended.errors
    assert "= help:" in ended.errors
    for word in words:
        assert word in ended.errors
    assert not (folder / "out" / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("check", "."), 1, ("is a directory", "name the spec in it")),
        (("check", "nope.blk"), 1, ("no file `nope.blk`", "relative to where you are")),
        (("check", "empty.blk"), 1, ("the spec has no `cluster`",)),
        (("check", "utf16.blk"), 1, ("UTF-16", "save the file as UTF-8")),
        (("check", "german/adapter_model.safetensors"), 1, ("is it a text file?",)),
        (("check",), 64, ("Missing argument",)),
        (("chek", "small.blk"), 64, ("Did you mean 'check'?",)),
        (("check", "small.blk", "--var", "x"), 64, ("NAME=VALUE",)),
        (("check", "small.blk", "--var", "x=1"), 1, ("no variable named `x`",)),
        (("compile", "small.blk", "-o", "."), 1, ("is a folder", "-o plan.json")),
        (("compile", "small.blk", "-o", "small.blk"), 1, ("is a spec, not a plan", "-o plan.json")),
        (("serve", "small.blk"), 1, ("small.blk is a spec, not a plan", "blockc compile small.blk")),
        (("serve", "nope/plan.json"), 1, ("cannot read", "blockc compile")),
        (("viz", "base/config.json"), 1, ("is not a plan", "compile the spec again")),
    ],
)
def test_a_wrong_command_says_what_to_do(blockc, folder: Path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(folder)
    Path("empty.blk").touch()
    Path("utf16.blk").write_text("base", encoding="utf-16")
    before = Path("small.blk").read_text()
    ended = blockc(*arguments)
    assert ended.code == code
    assert ended.out == ""
    for word in words:
        assert word in ended.errors
    assert Path("small.blk").read_text() == before, "a spec is never written over"
    assert not Path("zoo").exists()


def test_too_little_memory_is_infeasible_and_says_how_much_is_needed(blockc, folder: Path):
    spec = folder / "narrow.blk"
    spec.write_text((folder / "small.blk").read_text().replace("1GiB", "129MiB"))
    ended = blockc("compile", spec, "-o", folder / "narrow" / "plan.json")
    assert ended.code == 3
    assert "BC401" in ended.errors
    assert "smallest relaxation: `memory =" in ended.errors
    assert not (folder / "narrow" / "plan.json").exists()


def test_line_ends_extensions_and_odd_folder_names_do_not_matter(blockc, folder: Path, tmp_path: Path):
    odd = copied(tmp_path / "mö dels ☃", "base", "german")
    text = (folder / "small.blk").read_text()
    (odd / "spec.txt").write_bytes(text.replace("\n", "\r\n").encode())
    ended = blockc("compile", odd / "spec.txt", "-o", odd / "new folder" / "plän.json")
    assert ended.code == 0
    assert (odd / "new folder" / "plän.json").is_file()
    assert blockc("viz", odd / "new folder" / "plän.json").code == 0


def test_an_interrupt_ends_in_one_word_and_leaves_no_plan(folder: Path, tmp_path: Path):
    command = [sys.executable, "-m", "blockc", "compile", str(folder / "small.blk"), "-o", str(tmp_path / "plan.json")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "read" in process.stderr.readline()  # the first stage is over, torch is being imported
        os.kill(process.pid, signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "plan.json").exists()
