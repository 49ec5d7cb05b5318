"""Draws against a slow reference in exact arithmetic; independence of batch, order and neighbours; faults; logprobs."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockc_runtime.request import Sampling
from blockc_runtime.sampling import sample, uniform_bits


def slow_sample(logits: list[float], own: Sampling, output_index: int) -> int:
    """One row, one token at a time, with Python's numbers."""
    largest = max(logits)
    if own.temperature == 0:
        return logits.index(largest)
    weights = [round(math.exp((logit - largest) / own.temperature) * 2**40) for logit in logits]
    if own.min_p > 0:
        weights = [weight if weight >= own.min_p * 2**40 else 0 for weight in weights]
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if own.top_k > 0:
        ranked = ranked[: own.top_k]
    if own.top_p < 1:
        goal = min(max(1, math.ceil(sum(weights[token] for token in ranked) * own.top_p)), sum(weights))
        kept, so_far = [], 0
        for token in ranked:
            kept.append(token)
            so_far += weights[token]
            if so_far >= goal:
                break
        ranked = kept
    total = sum(weights[token] for token in ranked)
    mark = Fraction(uniform_bits(own.seed, output_index), 2**64) * total
    so_far = 0
    for token in sorted(ranked):
        so_far += weights[token]
        if so_far > mark:
            return token
    raise AssertionError("the draw is outside the distribution")


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.01, 0.3, 0.7, 1.0, 1.5, 5.0]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.1, 0.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 50, 255, 256, 257, 5000, 10**9]),
    seed=st.integers(-(2**70), 2**70),
    min_p=st.sampled_from([0.0, 0.0, 0.0, 1e-6, 0.05, 0.7, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(samplings, min_size=1, max_size=5),
    vocab=st.sampled_from([1, 2, 7, 300, 5000]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 8.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_draws_equal_the_reference(rows, vocab, spread, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(rows), vocab, generator=generator) * spread).to(dtype)
    indices = [seed + row for row in range(len(rows))]
    got = [result.tokens[0] for result in sample(logits, rows, indices)]
    assert got == [slow_sample(logits[i].tolist(), own, indices[i]) for i, own in enumerate(rows)]


def test_a_row_does_not_see_its_neighbours():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(40, 3000, generator=generator) * 3
    kinds = [
        Sampling(temperature=(row % 4) * 0.5, top_p=(1.0, 0.9, 0.3)[row % 3], top_k=(0, 40)[row % 2], seed=row)
        for row in range(40)
    ]
    together = sample(logits, kinds, range(40))
    order = list(range(40))[::-1]
    shuffled = sample(logits[order], [kinds[row] for row in order], order)
    for row in range(40):
        (alone,) = sample(logits[row : row + 1], [kinds[row]], [row])
        assert alone == together[row] == shuffled[39 - row]


def test_global_random_state_is_neither_read_nor_written():
    logits = torch.randn(4, 100)
    own = [Sampling(temperature=1.0, seed=3)] * 4
    torch.manual_seed(1)
    first = sample(logits, own, range(4))
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    torch.manual_seed(2)
    assert sample(logits, own, range(4)) == first


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_logits_are_a_fault_of_their_row_only(poison, temperature):
    logits = torch.randn(3, 50)
    own = [Sampling(temperature=temperature, top_p=0.9, logprobs=1)] * 3
    clean = sample(logits, own, [0, 1, 2])
    logits[1, 7] = poison
    results = sample(logits, own, [0, 1, 2])
    assert results[1].fault is not None
    assert results[1].fault.scope == "row"
    assert (results[1].tokens, results[1].logprobs) == ((), ())
    assert (results[0], results[2]) == (clean[0], clean[2])


@pytest.mark.parametrize(
    "own",
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=9.0, top_k=300),
        Sampling(temperature=1e-30),
        Sampling(temperature=1e300, top_p=0.99),
    ],
)
def test_masked_tokens_are_never_drawn(own):
    logits = torch.full((1, 2000), -math.inf)
    logits[0, [3, 1999]] = torch.tensor([1.0, 2.0])
    drawn = {sample(logits, [own], [index])[0].tokens[0] for index in range(50)}
    assert drawn <= {3, 1999}
    assert sample(torch.full((1, 8), -math.inf), [own], [0])[0].fault is not None


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log().expand(4000, 4)
    own = [Sampling(temperature=1.0, seed=11)] * 4000
    tokens = [result.tokens[0] for result in sample(logits, own, range(4000))]
    for token, probability in enumerate([0.5, 0.2, 0.2, 0.1]):
        assert abs(tokens.count(token) / 4000 - probability) < 0.03
    nucleus = [Sampling(temperature=1.0, top_p=0.6, seed=11)] * 4000
    tokens = [result.tokens[0] for result in sample(logits, nucleus, range(4000))]
    assert set(tokens) == {0, 1}, "the fewest that reach top_p, the lower id among equals"
    assert abs(tokens.count(0) / 4000 - 5 / 7) < 0.03


def test_seed_and_index_decide_a_draw():
    logits = torch.zeros(1, 1000)
    draws = {
        sample(logits, [Sampling(temperature=1.0, seed=seed)], [index])[0].tokens
        for seed in range(10)
        for index in range(10)
    }
    assert len(draws) > 80


def test_logprobs_are_those_of_the_unfiltered_distribution():
    logits = torch.randn(3, 500) * 4
    expected = logits.log_softmax(-1)
    own = [
        Sampling(temperature=0.3, top_k=2, logprobs=5),
        Sampling(logprobs=0),
        Sampling(temperature=1.0),
    ]
    results = sample(logits, own, [0, 0, 0])
    assert [len(result.logprobs) for result in results] == [1, 1, 0]
    for row, count in ((0, 5), (1, 0)):
        (entry,) = results[row].logprobs
        assert entry.logprob == pytest.approx(expected[row, results[row].tokens[0]].item(), abs=1e-5)
        assert [token for token, _ in entry.top] == expected[row].topk(count).indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(expected[row].topk(count).values.tolist(), abs=1e-5)


def test_no_rows():
    assert sample(torch.empty(0, 10), [], []) == ()
    with pytest.raises(ValueError, match="2 rows"):
        sample(torch.empty(2, 10), [Sampling()], [0])
