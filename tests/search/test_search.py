"""`blockc tune`: a search that is exact where it can be checked, and the command on a spec without weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc.cli import main
from blockc.search import KNOBS, Tried, free_knobs, search, written
from blockc.spec.deployment import Policy

CONFIG = {
    "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip
SPEC = """
base tiny : hf("./tiny") { }
cluster c { node n { device d : cpu { memory = 1GiB } } }
tenant acme {
  app chat { model = tiny  slo { ttft_p95 = 200ms }  traffic { rate = 150rps  prompt = 60tok  output = 30tok } }
}
policy { batching { max_num_seqs = 8 } }
"""


class Scored(Tried):
    """A try whose score is said."""

    __slots__ = ("own",)

    def __init__(self, policy: Policy, own: float) -> None:
        super().__init__(policy=policy, report=None)
        object.__setattr__(self, "own", own)

    @property
    def score(self) -> tuple[float, ...]:
        return (self.own,)


@settings(max_examples=60, deadline=None)
@given(
    best=st.tuples(*(st.integers(0, len(knob.values) - 1) for knob in KNOBS)),
    start=st.tuples(*(st.integers(0, len(knob.values) - 1) for knob in KNOBS)),
    tries=st.sampled_from([1, 3, 8, 200]),
)
def test_one_hill_is_climbed_to_its_top(best, start, tries) -> None:
    asked: list[tuple[int, ...]] = []

    def place(policy: Policy) -> tuple[int, ...]:
        return tuple(knob.values.index(knob.read(policy)) for knob in KNOBS)

    def judge(policy: Policy) -> Tried:
        asked.append(place(policy))
        return Scored(policy, sum((mine - theirs) ** 2 for mine, theirs in zip(asked[-1], best, strict=True)))

    policy = Policy()
    for knob, index in zip(KNOBS, start, strict=True):
        policy = knob.turned(policy, knob.values[index])
    found = search(policy, KNOBS, judge, tries=tries)
    assert len(asked) == len(set(asked)) == len(found.tried) <= tries
    assert asked[0] == start
    assert found.best.score == min(item.score for item in found.tried)
    if tries == 200:
        assert found.is_done
        assert place(found.best.policy) == best


def test_knobs_are_written_as_a_spec_has_them() -> None:
    given_ = Policy(sides_limit_bytes=8 << 20)
    assert written(given_, given_) == ""
    better = replace(given_, max_rows=128, max_batched_tokens=4096, kv_page_tokens=32, sides_limit_bytes=16 << 20)
    assert written(better, given_) == (
        "policy { batching { max_num_seqs = 128  max_batched_tokens = 4096 }  kv { page = 32tok }  "
        "residency { fine_tunes = 16MiB } }"
    )
    assert [knob.name for knob in free_knobs(Policy())] == [knob.name for knob in KNOBS]
    odd = replace(given_, max_rows=50)
    assert 50 in free_knobs(odd)[0].values


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "fleet.blk").write_text(SPEC)
    return str(tmp_path / "fleet.blk")


def test_the_command_finds_better_values_and_says_how_to_write_them(spec: str, tmp_path: Path, capsys) -> None:
    command = ["tune", spec, "--target", "sim", "--requests", "120", "--tries", "8"]
    assert main(command) == 0
    once = capsys.readouterr().out
    assert once.startswith("TUNED  ")
    assert "under 120 requests" in once
    assert "best: write `policy { batching { max_num_seqs = " in once
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first, best = document["tried"][0], document["best"]
    assert 2 < len(document["tried"]) <= 8
    assert first["knobs"]["batching.max_num_seqs"] == 8
    assert best["batching.max_num_seqs"] > 8
    assert document["write"] in once
    # What it says to write is a spec, and its plan is what was tried.
    text = SPEC.replace("policy { batching { max_num_seqs = 8 } }", document["write"])
    (tmp_path / "fleet.blk").write_text(text)
    assert main(["check", spec, "--no-files"]) == 0


def test_a_spec_without_load_is_said(spec: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "fleet.blk").write_text(SPEC.replace("traffic { rate = 150rps  prompt = 60tok  output = 30tok }", ""))
    assert main(["tune", spec, "--target", "sim"]) == 1
    assert "BC108" in capsys.readouterr().err
