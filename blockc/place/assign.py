"""Things to places, each to one of its own, so that all together cost the least.

In: what each thing costs at each place. Out: a place for each. By cost-scaling push-relabel, which is exact
(`ortools.graph.python.linear_sum_assignment`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def cheapest(costs: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """A column for each row, all different. There are at least as many columns as rows."""
    from ortools.graph.python import linear_sum_assignment

    columns = len(costs[0]) if costs else 0
    solver: Any = linear_sum_assignment.SimpleLinearSumAssignment()
    for row in range(columns):
        for column in range(columns):
            solver.add_arc_with_cost(row, column, costs[row][column] if row < len(costs) else 0)
    status = solver.solve()
    assert status == solver.OPTIMAL, "every row may have every column"
    return tuple(solver.right_mate(row) for row in range(len(costs)))
