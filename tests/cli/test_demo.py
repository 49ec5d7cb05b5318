"""``blockc demo`` shows the whole way and leaves behind what it was asked to keep, which can be looked at."""

from __future__ import annotations

import json
import subprocess
import sys


def _blockc(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "blockc", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=240
    )


def test_the_demo_answers_in_every_manner_and_keeps_its_plan(tmp_path):
    result = _blockc("demo", "--keep", tmp_path / "kept")
    assert result.returncode == 0, result.stderr
    assert "all 21 answers are in the manner of their own fine-tune" in result.stdout
    assert "AHOY! THE CAPITAL OF FRANCE BE PARIS, MATEY." in result.stdout
    shown = _blockc("viz", tmp_path / "kept" / "plan.json", "--json")
    assert shown.returncode == 0
    document = json.loads(shown.stdout)
    assert document["format_version"] == 1
    assert len(document["apps"]) == 7
    assert document["bytes"]["ours_bytes"] < document["bytes"]["ps_bytes"] < document["bytes"]["pm_bytes"]
