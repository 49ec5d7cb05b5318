"""Loads that have more requests at once than a step takes are named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blockc.diag import Diagnostics
from blockc.place import place
from blockc.place.traffic.rows import expected_rows
from tests.place.loads import load, loaded


def given(rate: float, *, rows: int, output: int = 128):
    problem = loaded([4.0], [(0,)], [load(rate, prompt=512, output=output)], nodes=(1,))
    return replace(problem, max_rows=rows, max_batched_tokens=2048)


@pytest.mark.parametrize(("rate", "rows", "is_short"), [(12.0, 6, True), (12.0, 64, False), (0.5, 4, False)])
def test_a_step_that_is_too_small_is_named_with_one_that_is_not(rate: float, rows: int, is_short: bool) -> None:
    problem, diags = given(rate, rows=rows), Diagnostics()
    placement = place(problem, diags=diags)
    assert placement is not None
    found = [item for item in diags if item.code.id == "BC406"]
    expected = expected_rows(problem, placement, 0)
    assert bool(found) == is_short == (expected > rows)
    if found:
        words = found[0].help or ""
        enough = int(words.split("max_num_seqs = ")[1].split()[0])
        assert expected < enough <= 4 * expected
        again = Diagnostics()
        place(replace(problem, max_rows=enough), diags=again)
        assert not [item for item in again if item.code.id == "BC406"]


def test_rows_grow_with_load_and_count_parts_of_it() -> None:
    alone, more = (given(rate, rows=256) for rate in (2.0, 8.0))
    first, second = (place(own, diags=Diagnostics()) for own in (alone, more))
    assert 0 < expected_rows(alone, first, 0) < expected_rows(more, second, 0) / 4
    nothing = replace(alone, chains=tuple(replace(chain, load=None) for chain in alone.chains))
    assert expected_rows(nothing, place(nothing, diags=Diagnostics()), 0) == 0
