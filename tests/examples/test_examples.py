"""Every example runs as its text says, and prints what it is about."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_PRINTS = {
    "01_compile.py": ["poet", "10 of 14 blocks are the base's"],
    "02_serve_and_chat.py": ["harbour/storm", "matey"],
    "03_who_may_share_kv.py": ["layers whose keys and values are equal"],
    "04_bring_your_own.py": ["ok", "acme/support"],
}


def test_every_numbered_example_is_here():
    assert sorted(_PRINTS) == sorted(path.name for path in (_ROOT / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("name", _PRINTS)
def test_example(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(_ROOT / "examples" / name), run_name="__main__")
    printed = capfd.readouterr().out.lower()
    for words in _PRINTS[name]:
        assert words.lower() in printed
