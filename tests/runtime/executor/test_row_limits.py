"""Which tokens a row may hold: those of the table, and at its first positions its chain's virtual ones."""

from __future__ import annotations

import pytest

from blockc_runtime.executor.batch import RowLimits, row_problem
from blockc_runtime.step import Row

VIRTUAL = (1 << 32, 3, (1 << 32) + 1)
LIMITS = RowLimits(
    token_ids=10, positions=64, pages=(8,), page_tokens=(16,), windows=(None,), virtual_tokens=VIRTUAL
)  # fmt: skip


def _problem(start: int, *tokens: int, limits: RowLimits = LIMITS) -> str | None:
    row = Row(
        request="r", chain=0, tokens=tokens, start=start, pages=((0, 1, 2, 3),), samples=1, sampling=None,
        output_index=0,
    )  # fmt: skip
    return row_problem(row, limits)


@pytest.mark.parametrize(
    ("start", "tokens"), [(0, VIRTUAL), (0, VIRTUAL[:1]), (1, VIRTUAL[1:]), (2, (VIRTUAL[2], 9, 0)), (3, (9,))]
)
def test_virtual_tokens_at_their_positions(start, tokens):
    assert _problem(start, *tokens) is None


@pytest.mark.parametrize(
    ("start", "tokens"),
    [(0, (1, 2)), (1, VIRTUAL[:1]), (2, (3,)), (3, VIRTUAL[:1]), (0, (*VIRTUAL, VIRTUAL[0])), (0, (*VIRTUAL, 10))],
)
def test_anything_else_there_or_them_elsewhere(start, tokens):
    assert _problem(start, *tokens) is not None


def test_another_chain_has_none_of_them():
    own = RowLimits(token_ids=10, positions=64, pages=(8,), page_tokens=(16,), windows=(None,))
    assert _problem(0, 3, limits=own) is None
    assert _problem(0, VIRTUAL[0], limits=own) is not None
