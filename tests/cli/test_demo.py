"""``blockc demo`` shows the whole way and leaves behind what it was asked to keep, which can be looked at."""

from __future__ import annotations

import json


def test_the_demo_answers_in_every_manner_and_keeps_its_plan(blockc, tmp_path):
    ended = blockc("demo", "--keep", tmp_path / "kept")
    assert ended.code == 0, ended.errors
    assert "all 21 answers are in the manner of their own fine-tune" in ended.out
    assert "AHOY! THE CAPITAL OF FRANCE BE PARIS, MATEY." in ended.out
    shown = blockc("viz", tmp_path / "kept" / "plan.json", "--json")
    assert shown.code == 0
    document = json.loads(shown.out)
    assert document["format_version"] == 1
    assert len(document["apps"]) == 7
    assert document["bytes"]["ours_bytes"] < document["bytes"]["ps_bytes"] < document["bytes"]["pm_bytes"]
