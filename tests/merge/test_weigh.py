"""What is merged by load has less than what it was compared with, whatever placement says of each."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from blockc.graph import Chain
from blockc.merge import Amounts, Folded, fold
from blockc.merge.fold import imagined
from blockc.merge.weigh import remembering, weigh_each
from tests.support.adapters import save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.tiny_models import save_model

NAMES = ("one", "three", "two")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("models")
    base = save_model("llama", root / "base")
    tunes = {name: ("base", save_lora(base, root / name, seed=seed)) for seed, name in enumerate(NAMES)}
    chains, zoo, _ = chains_of(deployment(base, tunes), root / "zoo")
    return chains, zoo


def amounts(*values: float, goals: tuple[str, ...] = ("devices", "peak_load")) -> Amounts:
    return Amounts(goals=goals, values=values, by_load=True)


@pytest.mark.parametrize("seed", range(40))
def test_no_plan_has_more_than_without_merging(seed: int, tuned) -> None:
    chains, _ = tuned
    generator = random.Random(seed)
    table: dict[tuple[bool, ...], Amounts] = {}
    roundings = {chains[name].digest: generator.choice([None, 0.0, 0.5]) for name in NAMES}

    def key(found: Mapping[str, Chain]) -> tuple[bool, ...]:
        return tuple(found[name].sides == () for name in NAMES)

    def weigh(found: Mapping[str, Chain]) -> Amounts:
        values = () if generator.random() < 0.2 else (generator.randint(1, 3), generator.randint(1, 9) / 10)
        return table.setdefault(key(found), amounts(*values))

    def make(chain: Chain) -> Folded:
        return Folded(chain=imagined(chain), rounding=roundings[chain.digest])

    merged, weighed = weigh_each(chains, NAMES, weigh=weigh, make=make)
    now, plain = table[key(chains | {name: folded.chain for name, folded in merged.items()})], table[key(chains)]
    assert now == plain if not merged else now.is_less_than(plain)
    assert set(weighed) == set(NAMES)
    for name, said in weighed.items():
        less = said.merged != () and (said.beside == () or said.merged < said.beside)
        assert (name in merged) == (less and said.rounding != 0.5)


def test_the_same_chains_are_placed_once(tuned) -> None:
    chains, _ = tuned
    asked: list[Mapping[str, Chain]] = []

    def weigh(found: Mapping[str, Chain]) -> Amounts:
        asked.append(found)
        return amounts(float(len(asked)))

    weigh_once = remembering(weigh)
    other = chains | {"one": imagined(chains["one"])}
    assert [weigh_once(found).values for found in (chains, other, dict(chains), other)] == [(1,), (2,), (1,), (2,)]


def test_no_room_is_more_than_anything() -> None:
    assert amounts(9, 0.9).is_less_than(amounts())
    assert not amounts().is_less_than(amounts(9, 0.9))
    assert not amounts().is_less_than(amounts())


def test_harm_is_more_of_what_is_counted_or_stands_before_it() -> None:
    assert amounts(2, 0.9).is_no_harm_to(amounts(2, 0.1))
    assert not amounts(3, 0.1).is_no_harm_to(amounts(2, 0.9))
    first = ("peak_load", "devices")
    assert not amounts(0.9, 2, goals=first).is_no_harm_to(amounts(0.1, 2, goals=first))


def test_what_is_imagined_has_the_shapes_of_what_is_folded(tuned) -> None:
    chains, zoo = tuned
    made, thought = fold(chains["one"], zoo).chain, imagined(chains["one"])
    assert made.sides == thought.sides == ()
    base = chains["base"].path.blocks
    for block, other, own in zip(made.path.blocks, thought.path.blocks, base, strict=True):
        shape = {name: (ref.dtype, ref.shape) for name, ref in block.tensors.items()}
        assert shape == {name: (ref.dtype, ref.shape) for name, ref in other.tensors.items()}
        changed = {name for name, ref in block.tensors.items() if ref != own.tensors[name]}
        assert changed == {name for name, ref in other.tensors.items() if ref != own.tensors[name]}
    assert imagined(replace(chains["one"], sides=())) == replace(chains["one"], sides=())
