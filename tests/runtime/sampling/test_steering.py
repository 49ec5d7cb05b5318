"""Steered logits against plain arithmetic; draws and log probabilities of steered rows; their neighbours."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc_runtime.executor.draw import draw
from blockc_runtime.request import Sampling, Steering
from blockc_runtime.sampling import sample
from blockc_runtime.steering import steer
from blockc_runtime.step import Row

VOCAB = 20


def slow_steer(logits: list[float], own: Steering, history: list[int], output_index: int) -> list[float]:
    """One token at a time, as vLLM's documentation words it."""
    outputs = history[len(history) - output_index :]
    steered = list(logits)
    for token in range(len(logits)):
        if output_index < own.min_tokens and token in own.stop_token_ids:
            steered[token] = -math.inf
        steered[token] += dict(own.logit_bias).get(token, 0.0)
        if token in history:
            positive = steered[token] > 0
            steered[token] *= 1 / own.repetition_penalty if positive else own.repetition_penalty
        steered[token] -= own.presence_penalty * (token in outputs) + own.frequency_penalty * outputs.count(token)
    return steered


tokens = st.integers(0, VOCAB - 1)
steerings = st.builds(
    Steering,
    presence_penalty=st.sampled_from([0.0, 0.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.25, 0.5]),
    logit_bias=st.dictionaries(tokens, st.sampled_from([-100.0, 3.0, 100.0]), max_size=3).map(
        lambda biases: tuple(sorted(biases.items()))
    ),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.lists(tokens, max_size=2).map(tuple),
)


@settings(max_examples=200, deadline=None)
@given(steerings, st.lists(tokens, min_size=1, max_size=12), st.integers(0, 8), st.integers(0, 1000))
def test_steering_is_what_the_words_say(own, history, output_index, seed):
    output_index = min(output_index, len(history) - 1)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    expected = slow_steer(logits.tolist(), own, history, output_index)
    steer(logits, own, history, output_index)
    assert logits.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def row(sampling: Sampling, history: tuple[int, ...], output_index: int, *, samples: int = 1) -> Row:
    return Row(
        request="r", chain=0, tokens=history[-samples:], start=0, pages=(), samples=samples, sampling=sampling,
        output_index=output_index, history=history if sampling.steering else (),
    )  # fmt: skip


def test_a_steered_row_is_drawn_from_what_it_was_steered_to_and_tells_what_the_model_said():
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    likeliest = int(logits[1].argmax())
    barred = Sampling(logprobs=2, steering=Steering(logit_bias=((likeliest, -100.0),)))
    rows = [
        row(Sampling(temperature=1.0, seed=5, logprobs=1), (3, 4), 1),
        row(barred, (3, 4), 1),
        row(Sampling(), (), 0),
    ]
    before = logits.clone()
    results = draw(logits, rows)
    assert results[1].tokens != (likeliest,)
    (entry,) = results[1].logprobs
    assert entry.top[0][0] == likeliest
    assert entry.logprob == pytest.approx(float(before[1].log_softmax(-1)[results[1].tokens[0]]), abs=1e-5)
    plain = sample(before, [rows[0].sampling or barred, Sampling(), Sampling()], [1, 1, 0])
    assert (results[0], results[2]) == (plain[0], plain[2])  # neighbours see nothing of it


def test_a_token_beyond_the_vocabulary_is_passed_over():
    logits = torch.zeros(VOCAB)
    own = Steering(presence_penalty=1.0, repetition_penalty=2.0, logit_bias=((VOCAB, 5.0),), min_tokens=9,
                   stop_token_ids=(10**6,))  # fmt: skip
    steer(logits, own, (10**9, 3), 1)
    assert logits.tolist() == [-1.0 if token == 3 else 0.0 for token in range(VOCAB)]


def test_each_of_several_samples_sees_the_tokens_before_it():
    own = Sampling(steering=Steering(frequency_penalty=2.0))
    history = (1, 7, 8, 7)  # one token of prompt
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(2))
    logits[:, 7] = 3.9
    logits[:, 9] = 1.0
    logits.clamp_(max=3.9)
    logits[:, 10:] = 0.0
    logits[:, :7] = 0.0
    together = draw(logits.clone(), [row(own, history, 2, samples=2)])[0].tokens
    one_by_one = [
        draw(logits[[i]].clone(), [dataclasses.replace(row(own, history[: 3 + i], 2 + i))])[0].tokens[0]
        for i in range(2)
    ]
    assert list(together) == one_by_one
    assert together == (7, 9)


def test_all_barred_is_a_fault_of_the_row():
    own = Sampling(steering=Steering(min_tokens=3, stop_token_ids=tuple(range(VOCAB))))
    assert draw(torch.zeros(1, VOCAB), [row(own, (1,), 0)])[0].fault is not None
