"""A traced and bound model computes what transformers computes, for every supported architecture."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from blockc.diag import Diagnostics, Span
from blockc.graph import Chain
from blockc.tune.checkpoint import open_checkpoint
from blockc.tune.full import bind_checkpoint
from blockc.zoo import Zoo
from tests.support.interpreter import logits
from tests.support.tiny_models import CONFIGS, save_model
from tests.support.traced_once import once

_AT = Span(file="test.blk", start_line=1, start_column=1, end_line=1, end_column=2)


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_compute_what_the_model_computes(name, tmp_path):
    directory = save_model(name, tmp_path / "model")
    zoo = Zoo(tmp_path / "zoo", create=True)
    diags = Diagnostics()
    traced = once(AutoConfig.from_pretrained(directory), dtype="float32")
    checkpoint = open_checkpoint(
        directory, stem="model", index="model.safetensors.index.json", written="model", diags=diags, at=_AT
    )
    path = bind_checkpoint(
        traced, checkpoint, zoo=zoo, max_model_len=512, kv_dtype="F32", written="model", diags=diags, at=_AT
    )
    assert not list(diags)
    chain = Chain(path=path, sides=(), assets={}, stop_token_ids=())
    tokens = torch.randint(3, 128, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0]
    assert torch.allclose(logits(chain, zoo, tokens), expected, atol=2e-5)
    assert expected.std() > 0.1, "logits that are all alike would hide mistakes"
