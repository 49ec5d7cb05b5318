"""A folded chain computes what the chain with its sides computes, and nothing of it is left beside the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockc.graph import Chain
from blockc.ir import Side, Site, sites_of, term
from blockc.merge import fold
from blockc.tune.full import tensor_ref
from blockc.tune.stored import read_tensor as read
from blockc.zoo import Zoo
from tests.support.adapters import LLAMA_LINEARS, save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.interpreter import logits
from tests.support.tiny_models import save_model

TOKENS = [3, 17, 90, 41, 5, 66, 120, 8]
FUSED = ["c_attn", "c_proj", "c_fc"]


@pytest.mark.parametrize(("name", "targets"), [("llama-tied", [*LLAMA_LINEARS, "lm_head"]), ("gpt2", FUSED)])
def test_logits_are_those_of_the_sides(name: str, targets: list[str], tmp_path: Path) -> None:
    base = save_model(name, tmp_path / "base")
    adapter = save_lora(base, tmp_path / "adapter", target_modules=targets)
    chains, zoo, _ = chains_of(deployment(base, {"tuned": ("base", adapter)}), tmp_path / "zoo")
    folded = fold(chains["tuned"], zoo)
    assert folded.chain.sides == ()
    assert folded.rounding < 1e-6
    wanted, plain = logits(chains["tuned"], zoo, TOKENS), logits(chains["base"], zoo, TOKENS)
    torch.testing.assert_close(logits(folded.chain, zoo, TOKENS), wanted, rtol=1e-4, atol=1e-4)
    assert float((wanted - plain).abs().max()) > 0.1, "an adapter that changes nothing would prove nothing"


def test_every_codec_that_can_be_folded(tmp_path: Path) -> None:
    """By the normal form, tensor by tensor: scales, replaced rows, biases that the base has and has not, vectors."""
    base = save_model("qwen2", tmp_path / "base")
    chains, zoo, _ = chains_of(deployment(base), tmp_path / "zoo")
    chain, at = chains["base"], 1
    places = sites_of(chain.path.blocks[at].structure)
    query = next(place for place in places.values() if place.name.endswith("q_proj"))
    norm = next(place for place in places.values() if place.kind == "vector")
    out, inputs = query.shape
    stored = {
        "t": torch.rand(inputs) + 0.5, "s": torch.rand(out) + 0.5, "b": torch.randn(out), "n": torch.rand(norm.shape),
        "rows": torch.randn(2, inputs), "index": torch.tensor([1, 5]),
    }  # fmt: skip
    ref = {name: _put(zoo, value) for name, value in stored.items()}
    terms = (
        term("in_scale", {"value": ref["t"]}), term("rows", {"index": ref["index"], "weight": ref["rows"]}),
        term("out_scale", {"value": ref["s"]}), term("bias", {"value": ref["b"]}),
    )  # fmt: skip
    sides = (
        Side(site=Site(occurrence=at, name=query.name), terms=terms),
        Side(site=Site(occurrence=at, name=norm.name), terms=(term("value", {"value": ref["n"]}),)),
    )
    folded = fold(replace(chain, sides=sides), zoo).chain
    block, old = folded.path.blocks[at], chain.path.blocks[at]
    matrix = read(zoo, old.tensors[query.param])
    matrix[stored["index"]] = stored["rows"]
    torch.testing.assert_close(
        read(zoo, block.tensors[query.param]), stored["s"][:, None] * matrix * stored["t"], rtol=1e-6, atol=1e-6
    )
    assert torch.equal(read(zoo, block.tensors[query.param.replace("weight", "bias")]), stored["b"])
    assert torch.equal(read(zoo, block.tensors[norm.param]), stored["n"])
    assert folded.sides == ()
    unscaled = fold(replace(chain, sides=(replace(sides[0], terms=terms[2:3]),)), zoo).chain.path.blocks[at]
    bias = read(zoo, old.tensors[query.param.replace("weight", "bias")])
    made = read(zoo, unscaled.tensors[query.param.replace("weight", "bias")])
    torch.testing.assert_close(made, stored["s"] * bias)


def test_what_cannot_be_folded_stays_whole(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    chains, zoo, _ = chains_of(deployment(base), tmp_path / "zoo")
    chain: Chain = chains["base"]
    table = next(place for place in sites_of(chain.path.blocks[0].structure).values() if place.kind == "embed")
    rows = {"index": _put(zoo, torch.tensor([128])), "weight": _put(zoo, torch.randn(1, 64))}
    side = Side(site=Site(occurrence=0, name=table.name), terms=(term("rows", rows),))
    folded = fold(replace(chain, sides=(side,)), zoo).chain
    assert (folded.sides, folded.path) == ((side,), chain.path)


def test_a_bias_that_the_base_has_not_stays_beside_it(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    chains, zoo, _ = chains_of(deployment(base), tmp_path / "zoo")
    chain = chains["base"]
    query = next(p for p in sites_of(chain.path.blocks[1].structure).values() if p.name.endswith("q_proj"))
    terms = tuple(term(codec, {"value": _put(zoo, torch.rand(query.shape[0]))}) for codec in ("out_scale", "bias"))
    side = Side(site=Site(occurrence=1, name=query.name), terms=terms)
    folded = fold(replace(chain, sides=(side,)), zoo).chain
    assert folded.sides == (replace(side, terms=terms[1:]),)


def _put(zoo: Zoo, value: torch.Tensor):
    ref, data = tensor_ref(value)
    zoo.put_tensors([(ref, data)])
    return ref
