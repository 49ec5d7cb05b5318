"""What a client sees does not depend on how tokens were grouped into events."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from blockc_runtime.request import EndEvent, TokensEvent
from blockc_runtime.server.detokenize import Vocabulary
from blockc_runtime.server.output import Output, OutputOptions
from tests.runtime.server import world

EOS, STOP_TOKEN = 1, 3


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(world.tokenizer())


def options(stops: tuple[str, ...] = (), *, include: bool = False) -> OutputOptions:
    return OutputOptions(
        stops=stops, stop_token_ids=frozenset({EOS, STOP_TOKEN}), eos_token_ids=frozenset({EOS}),
        include_stop=include, skip_special_tokens=True,
    )  # fmt: skip


def run(groups: list[list[int]], reason: str, given_options: OutputOptions) -> tuple[object, ...]:
    output = Output(vocabulary(), given_options)
    deltas = []
    for group in groups:
        if not output.finished:
            event = TokensEvent(request="r", tokens=tuple(group), logprobs=())
            deltas.append(output.feed(event))
    if not output.finished:
        deltas.append(
            output.end(EndEvent(request="r", reason=reason, message="", cached_tokens=0))  # type: ignore[arg-type]
        )
    text = "".join(delta.text for delta in deltas)
    tokens = [token for delta in deltas for token in delta.tokens]
    last = deltas[-1]
    return text, tokens, last.finish_reason, last.stop_reason, output.token_count


tokens_lists = st.lists(st.integers(4, 358), min_size=1, max_size=30)


@given(tokens_lists, st.lists(st.integers(0, 30)), st.sampled_from([(), ("a",), ("th", "\ufffd")]))
def test_grouping_does_not_matter(tokens, cuts, stops):
    groups, start = [], 0
    for cut in sorted({cut for cut in cuts if 0 < cut < len(tokens)}):
        groups.append(tokens[start:cut])
        start = cut
    groups.append(tokens[start:])
    one_by_one = run([[token] for token in tokens], "length", options(stops))
    assert run(groups, "length", options(stops)) == one_by_one


def test_the_models_own_end_is_not_shown_and_has_no_reason():
    text = world.tokenizer().encode("the fox").ids
    assert run([[*text, EOS]], "stop", options()) == ("the fox", [*text, EOS], "stop", None, len(text) + 1)


def test_a_stop_token_is_named_and_shown_on_request():
    text = world.tokenizer().encode("the fox").ids
    hidden = run([text, [STOP_TOKEN]], "stop", options())
    assert hidden == ("the fox", [*text, STOP_TOKEN], "stop", STOP_TOKEN, len(text) + 1)
    letter = world.tokenizer().encode("z").ids[0]
    shows_it = OutputOptions(
        stops=(), stop_token_ids=frozenset({letter}), eos_token_ids=frozenset(),
        include_stop=True, skip_special_tokens=True,
    )  # fmt: skip
    assert run([text, [letter]], "stop", shows_it)[0] == "the foxz"


def test_what_was_held_back_for_a_stop_string_shows_at_the_end():
    text = world.tokenizer().encode("the fo").ids
    assert run([text], "length", options(("fox",)))[:4] == ("the fo", text, "length", None)


def test_tokens_behind_a_stop_string_are_dropped():
    ids = [world.tokenizer().encode(letter).ids[0] for letter in "abcde"]
    assert run([ids], "length", options(("c",))) == ("ab", ids[:3], "stop", "c", 3)


def test_a_stop_string_of_an_unfinished_character():
    ids = world.tokenizer().encode("a🦊").ids[:-1]
    assert run([ids], "length", options(("\ufffd",)))[:1] == ("a",)
