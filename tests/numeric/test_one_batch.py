"""A base and a fine-tune of every kind in one step of the engine, against each model run alone. Float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockc.fine_tunes import BIAS, BOTTLENECK, FULL
from tests.support.one_batch import ARCHITECTURES, WORDED, fleet, measure

TOLERANCE = 2e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_says_what_its_model_says_alone(architecture: str, tmp_path: Path) -> None:
    found = fleet(architecture, tmp_path)
    kinds = {model.kind for model in found.plan.models.values()}
    assert {"base", "lora", "ia3", "prefix", "prompt", BOTTLENECK, FULL} <= kinds
    assert (BIAS in kinds) == (architecture == "gpt2")
    report = measure(found, tmp_path)
    assert report.rows_by_step[0] > 1
    assert report.rows_by_step == (len(found.plan.apps),) * len(report.rows_by_step)
    assert {row.model for row in report.rows} == found.plan.models.keys()
    for row in report.rows:
        assert row.tokens_equal, row
        assert row.max_difference < TOLERANCE, row
        assert (row.change > 1e-2) == (row.model != "base"), row
    assert sum(row.model == WORDED for row in report.rows) == 1
