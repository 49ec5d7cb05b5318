"""Scores as probabilities: transformers' own where nothing else is asked of it."""

from __future__ import annotations

import pytest
import torch

from blockc_runtime.server.classify import probabilities


@pytest.mark.parametrize("scores", [[0.3], [-900.0], [900.0], [1.0, 2.0], [1000.0, -1000.0, 999.0], [0.0] * 7])
def test_probabilities(scores):
    values = torch.tensor(scores, dtype=torch.float64)
    expected = torch.sigmoid(values) if len(scores) == 1 else torch.softmax(values, 0)
    torch.testing.assert_close(torch.tensor(probabilities(scores), dtype=torch.float64), expected)
