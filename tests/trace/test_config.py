"""Configurations that would take the machine down are refused before anything is made of them."""

from __future__ import annotations

import pytest

from blockc.trace import UntraceableError, config_of
from tests.support.tiny_models import CONFIGS


@pytest.mark.parametrize(
    ("name", "field"),
    [("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("llama", "head_dim"), ("gpt2", "n_head")],
)
@pytest.mark.parametrize("size", [10**9, 1e12])
def test_sizes_that_no_model_has(name: str, field: str, size: float) -> None:
    with pytest.raises(UntraceableError, match=f"`{field}` as more than"):
        config_of({**CONFIGS[name].to_dict(), field: size})
