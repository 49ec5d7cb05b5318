"""Masks of grammars: what may follow, from the tokens alone, whatever was asked before."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockc.plan import load_plan
from blockc.zoo import Zoo
from blockc_runtime import structured
from blockc_runtime.executor.draw import draw
from blockc_runtime.executor.grammars import Grammars
from blockc_runtime.request import Sampling, Steering
from blockc_runtime.step import Row
from tests.runtime.server import world
from tests.support.processes import eventually

EOS = 1
VOCAB = world.vocab_size() + 7  # rows of the head that no token uses
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def grammars(tmp_path: Path) -> Iterator[Grammars]:
    plan, zoo = world.build(tmp_path)
    with closing(Grammars(load_plan(plan), Zoo(zoo))) as own:
        yield own


def row(
    grammar: str, outputs: Sequence[int], *, request: str = "r", stops: tuple[int, ...] = (EOS,), **own: Any
) -> Row:
    steering = Steering(grammar=grammar, stop_token_ids=stops, **own)
    return Row(
        request=request, chain=0, tokens=(5,), start=0, pages=(), samples=1, sampling=Sampling(steering=steering),
        output_index=len(outputs), history=(5, *outputs),
    )  # fmt: skip


def allowed(grammars: Grammars, grammar: str, outputs: Sequence[int], **own: Any) -> set[int]:
    (mask,) = grammars.allowed([(row(grammar, outputs, **own), outputs)], VOCAB)
    assert isinstance(mask, Tensor), mask
    assert mask.shape == (VOCAB,)
    return set(mask.nonzero()[:, 0].tolist())


def written(grammars: Grammars, grammar: str, *, seed: int, request: str = "r") -> list[int]:
    """A model that knows nothing, kept to a grammar; it prefers to end. At most 200 tokens."""
    generator = torch.Generator().manual_seed(seed)
    outputs: list[int] = []
    while len(outputs) < 200 and (not outputs or outputs[-1] != EOS):
        logits = torch.randn(1, VOCAB, generator=generator)
        logits[0, EOS] = 50.0
        (result,) = draw(logits, [row(grammar, outputs, request=request)], grammars)
        assert result.fault is None
        outputs += result.tokens
    return outputs


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_model_prefers_the_output_follows_the_schema(grammars: Grammars, seed: int):
    outputs = written(grammars, structured.json_schema(PERSON), seed=seed)
    assert outputs[-1] == EOS
    value = json.loads(world.tokenizer().decode(outputs[:-1]))
    assert {"name", "age"} <= set(value) <= {"name", "age", "tags"}
    assert isinstance(value["age"], int)
    assert 0 <= value["age"] <= 120
    assert len(value["name"]) <= 5
    assert set(value.get("tags", [])) <= {"red", "blue"}


def test_masks_depend_on_the_tokens_alone(grammars: Grammars, tmp_path: Path):
    grammar = structured.json_schema(PERSON)
    whole = written(grammars, grammar, seed=3)
    masks = [allowed(grammars, grammar, whole[:end], request="in order") for end in range(len(whole))]
    plan, zoo = world.build(tmp_path / "again")
    ends = list(range(len(whole)))
    random.Random(1).shuffle(ends)
    with closing(Grammars(load_plan(plan), Zoo(zoo))) as other:  # another engine, which sees steps out of order
        for end in ends:
            assert allowed(other, grammar, whole[:end], request="in disorder") == masks[end]
            assert allowed(other, structured.regex("a+"), [], request="a neighbour")


def test_the_end_is_the_requests_own(grammars: Grammars):
    grammar = structured.choice(["the"])
    tokens = world.tokenizer().encode("the").ids
    assert EOS not in allowed(grammars, grammar, [])
    assert allowed(grammars, grammar, tokens) == {EOS}
    assert allowed(grammars, grammar, tokens, request="other", stops=(2, 3)) == {2, 3}


def test_a_least_length_gives_way_to_an_end(grammars: Grammars):
    optional = structured.regex("(the)*")
    for outputs, expected in [((), False), (world.tokenizer().encode("the").ids, False)]:
        logits = torch.zeros(1, VOCAB)
        logits[0, EOS] = 50.0
        (result,) = draw(logits, [row(optional, outputs, min_tokens=9)], grammars)
        assert (result.tokens == (EOS,)) is expected
    tokens = world.tokenizer().encode("the").ids
    (result,) = draw(torch.zeros(1, VOCAB), [row(structured.choice(["the"]), tokens, min_tokens=9)], grammars)
    assert result.tokens == (EOS,)


def test_what_goes_wrong_is_the_rows_alone(grammars: Grammars):
    fine = row(structured.choice(["the"]), [], request="fine")
    for bad in (row("start: nowhere", []), row(structured.choice(["the"]), [200, 201, 202], request="strayed")):
        broken, good = draw(torch.zeros(2, VOCAB), [bad, fine], grammars)
        assert broken.fault is not None
        assert broken.fault.scope == "row"
        assert good.fault is None
        assert good.tokens


def test_a_vocabulary_is_indexed_while_others_go_on(tmp_path: Path):
    plan, zoo = world.build(tmp_path)
    slow = (
        "import time, runpy; time.sleep(0.6); runpy.run_module('blockc_runtime.grammar_process', run_name='__main__')"
    )
    with closing(Grammars(load_plan(plan), Zoo(zoo), command=(sys.executable, "-c", slow))) as grammars:
        began_s = time.monotonic()
        assert not grammars.index(0)
        assert not grammars.index(1), "the same files: the same process"
        assert time.monotonic() - began_s < 0.5
        assert eventually(lambda: grammars.index(0), 20)
        assert grammars.index(1)
        assert allowed(grammars, structured.choice(["the"]), [])


def test_a_process_that_dies_takes_its_rows_with_it_and_is_started_again(tmp_path: Path):
    plan, zoo = world.build(tmp_path)
    mark = tmp_path / "died"
    once = (
        f"import pathlib, runpy, sys; mark = pathlib.Path({str(mark)!r}); first = not mark.exists(); mark.touch();"
        "first and sys.exit(3); runpy.run_module('blockc_runtime.grammar_process', run_name='__main__')"
    )
    grammar = structured.choice(["the"])
    with closing(Grammars(load_plan(plan), Zoo(zoo), command=(sys.executable, "-c", once))) as grammars:
        (problem,) = grammars.allowed([(row(grammar, []), [])], VOCAB)
        assert isinstance(problem, str)
        assert "ended" in problem
        assert allowed(grammars, grammar, [])


def test_a_tokenizer_that_cannot_be_used_is_said_once_and_for_all(tmp_path: Path):
    plan, zoo = world.build(tmp_path)
    said = "from blockc_runtime.grammar_process import *; import sys; write_frame(sys.stdout.buffer, 'no tokens')"
    with closing(Grammars(load_plan(plan), Zoo(zoo), command=(sys.executable, "-c", said))) as grammars:
        for _ in range(2):
            (problem,) = grammars.allowed([(row(structured.choice(["the"]), []), [])], VOCAB)
            assert isinstance(problem, str)
            assert "no tokens" in problem
        assert grammars.index(0)
        assert grammars.index(99), "whoever asks for no chain is told so elsewhere"


def test_plans_with_one_tokenizer_have_one_process(tmp_path: Path):
    """Each start is a line in a file."""
    plan, zoo = world.build(tmp_path)
    after = world.build_more(tmp_path, zoo, "after.json", world.APPS[::-1])
    starts = tmp_path / "starts"
    counted = (
        f"import pathlib, runpy; pathlib.Path({str(starts)!r}).open('a').write('x\\n');"
        "runpy.run_module('blockc_runtime.grammar_process', run_name='__main__')"
    )
    command, grammar = (sys.executable, "-c", counted), structured.choice(["the"])
    first = Grammars(load_plan(plan), Zoo(zoo), command=command)
    expected = allowed(first, grammar, [])
    second = Grammars(load_plan(after), Zoo(zoo), command=command, before=first)
    first.close()
    assert second.index(0), "nothing is indexed again"
    assert allowed(second, grammar, []) == expected
    third = Grammars(load_plan(plan), Zoo(zoo), command=command, before=second)
    third.close()
    assert allowed(second, grammar, []) == expected, "and who goes takes nothing from others"
    second.close()
    assert starts.read_text() == "x\n"


def test_blanks_come_to_an_end(grammars: Grammars):
    grammar = structured.json_schema({"type": "object"})
    (blank,) = world.tokenizer().encode(" ").ids
    for text, more in [("{", True), ("{ ", False), ("{\n", True), ("{\n" + " " * 23, True), ("{\n" + " " * 24, False)]:
        assert (blank in allowed(grammars, grammar, world.tokenizer().encode(text).ids)) is more


@pytest.mark.parametrize(
    ("make", "value", "word"),
    [
        (structured.json_schema, {"type": "objct"}, "objct"),
        (structured.json_schema, {"not": {}, "x-guidance": {"lenient": True}}, "not"),
        (structured.json_schema, {"type": "string", "format": "nope"}, "nope"),
        (structured.regex, "(a", "unclosed"),
        (structured.lark, "start: b", "b"),
        (structured.lark, "x" * 70_000, "70000"),
    ],
)
def test_what_is_refused(make: Any, value: Any, word: str):
    with pytest.raises(structured.GrammarError, match=word):
        make(value)
