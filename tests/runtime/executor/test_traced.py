"""Structures as tracing writes them, with a fine-tune on sides, in mixed, chunked batches: against PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockc.graph import Block, Chain
from blockc.ir import DTYPE_NAME, TensorRef, format_structure
from blockc.plan import KvLayerEntry
from blockc.zoo import Zoo
from tests.runtime.executor.driver import Driver
from tests.runtime.executor.plans import BlockSpec, ModelSpec, PlanBuilder, Term
from tests.support.adapters import save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.tiny_models import CONFIGS, save_model

PROMPTS = [[3, 4, 5], [9], list(range(10, 45)), [7, 8]]


def tensor(zoo: Zoo, ref: TensorRef) -> Tensor:
    stored = zoo.tensor(ref.digest)
    dtype: torch.dtype = getattr(torch, DTYPE_NAME[stored.dtype])
    return torch.frombuffer(bytearray(stored.data), dtype=dtype).view(stored.shape)


def model_spec(chain: Chain, zoo: Zoo) -> ModelSpec:
    def spec(block: Block) -> BlockSpec:
        assert block.contexts == tuple(range(len(block.contexts)))
        return BlockSpec(
            structure=format_structure(block.structure),
            tensors={name: tensor(zoo, ref) for name, ref in block.tensors.items()},
            binds=dict(block.binds),
            has_context=block.prelude is not None,
        )

    path = chain.path
    return ModelSpec(
        blocks=tuple(spec(block) for block in path.blocks),
        prelude=None if path.prelude is None else spec(path.prelude),
        kv=tuple(
            KvLayerEntry(kv_heads=kv.kv_heads, head_dim=kv.head_dim, window=kv.window, dtype=kv.dtype)
            for kv in path.kv_layers
        ),
        dtype=torch.float32,
        vocab=path.vocab_size,
        max_len=path.max_model_len,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers_and_peft(name: str, tmp_path: Path) -> None:
    base = save_model(name, tmp_path / "base")
    fused: dict[str, Any] = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    adapter = save_lora(base, tmp_path / "adapter", **(fused if name == "gpt2" else {}))
    chains, zoo, _ = chains_of(deployment(base, {"tuned": ("base", adapter)}), tmp_path / "zoo")
    terms = tuple(
        Term(
            occurrence=side.site.occurrence,
            site=side.site.name,
            a=tensor(zoo, term["a"]),
            b=tensor(zoo, term["b"]),
            scale=term.scalar("scale"),
        )
        for side in chains["tuned"].sides
        for term in side.terms
    )
    builder = PlanBuilder(zoo, pages=100)
    builder.add(model_spec(chains["base"], zoo), sides=((), terms))
    driver = Driver(builder.build(), zoo)
    alone = [AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32) for _ in range(2)]
    alone[1] = PeftModel.from_pretrained(alone[1], adapter)
    sequences = [driver.start(i % 2, prompt) for i, prompt in enumerate(PROMPTS)]
    driver.generate(sequences, 4, chunk=9)
    for sequence, prompt in zip(sequences, PROMPTS, strict=True):
        with torch.no_grad():
            wanted = alone[sequence.chain](torch.tensor([sequence.tokens])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(sequence.logits), wanted, rtol=1e-5, atol=2e-5)
