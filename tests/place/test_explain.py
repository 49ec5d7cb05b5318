"""What does not fit is explained: numbers, the lines that ask for most, and relaxations that really suffice."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from blockc.diag import Diagnostic, Diagnostics
from blockc.diag.render import render
from blockc.place import PlaceProblem, place
from tests.place.problems import chain, device, problem, random_problem, segment, span

MIB = 1 << 20


def refused(given: PlaceProblem) -> Diagnostic:
    diags = Diagnostics()
    assert place(given, diags=diags) is None
    (item,) = diags
    assert item.code.id == "BC401"
    return item


def one_device(memory_mib: int = 20) -> PlaceProblem:
    return problem(
        [device(0, memory_mib * MIB, reserve_bytes=2 * MIB)],
        [segment("base", 12 * MIB, activation_bytes=MIB), segment("tuned", 6 * MIB)],
        [
            chain("base", (0,), length=4096, line=4),
            chain("poet", (0,), side_bytes=MIB, length=4096, line=5),
            chain("lawyer", (0, 1), length=4096, line=6),
        ],
        page_bytes=8192,
        layers=4,
    )


def test_one_device(golden: Callable[[str, str], None]) -> None:
    item = refused(one_device())
    assert item.message == "the plan needs at least 22.5 MiB, devices offer 18.0 MiB"
    assert item.primary is not None
    assert item.primary.span == span(2)
    assert [label.span.start_line for label in item.secondary] == [6, 5]
    golden("place/one-device.txt", render(item, {}))


def test_one_model_too_large(golden: Callable[[str, str], None]) -> None:
    given = problem(
        [device(0, 8 * MIB), device(1, 9 * MIB)],
        [segment("small", MIB), segment("large", 12 * MIB)],
        [chain("small", (0,), line=4), chain("large", (1,), line=5)],
    )
    item = refused(given)
    assert "`large` needs" in item.message
    assert [label.span.start_line for label in item.secondary] == [5]
    golden("place/one-model-too-large.txt", render(item, {}))


def test_fits_together_but_not_apart(golden: Callable[[str, str], None]) -> None:
    given = problem(
        [device(0, 10 * MIB), device(1, 10 * MIB)],
        [segment(str(i), 6 * MIB) for i in range(3)],
        [chain(f"model{i}", (i,), line=4 + i) for i in range(3)],
    )
    item = refused(given)
    assert "stays whole on one device" in item.message
    golden("place/not-apart.txt", render(item, {}))


def relaxed(given: PlaceProblem, text: str) -> PlaceProblem:
    if match := re.search(r"`memory = (\d+)(MiB|GiB)`", text):
        memory = int(match[1]) * (MIB if match[2] == "MiB" else 1024 * MIB)
        return replace(
            given, devices=tuple(replace(d, memory_bytes=max(d.memory_bytes, memory)) for d in given.devices)
        )
    match = re.search(r"`max_model_len = (\d+)`", text)
    assert match is not None
    chains = tuple(replace(c, max_model_len=min(c.max_model_len, int(match[1]))) for c in given.chains)
    return replace(given, chains=chains)


@pytest.mark.parametrize("seed", range(150))
def test_relaxations_suffice(seed: int) -> None:
    given = random_problem(seed)
    diags = Diagnostics()
    if place(given, diags=diags) is not None:
        return
    item = refused(given)
    assert item.help is not None
    for line in item.help.splitlines():
        assert place(relaxed(given, line), diags=Diagnostics()) is not None


def test_the_smallest_relaxation_comes_first() -> None:
    nearly = one_device(memory_mib=24)
    assert place(nearly, diags=Diagnostics()) is None
    help_ = refused(nearly).help
    assert help_ is not None
    first, second = help_.splitlines()
    assert first == "smallest relaxation: `memory = 25MiB` (is 24.0 MiB)"
    assert second.startswith("next: `max_model_len = ")


def test_a_long_context_is_blamed() -> None:
    given = problem(
        [device(0, 20 * MIB)], [segment("base", MIB)], [chain("base", (0,), length=1 << 20)], page_bytes=65536
    )
    help_ = refused(given).help
    assert help_ is not None
    assert "max_model_len" in help_


def test_a_reserve_above_the_memory() -> None:
    given = problem([device(0, MIB, reserve_bytes=2 * MIB)], [segment("a", 512)], [chain("a", (0,))])
    assert "needs at least" in refused(given).message


def test_many_models_are_named_in_part() -> None:
    given = problem(
        [device(0, 4 * MIB)],
        [segment("base", 8 * MIB)],
        [chain(f"adapter{i}", (0,), side_bytes=512, line=i + 1) for i in range(300)],
    )
    item = refused(given)
    assert any("and 296 more" in note for note in item.notes)
    assert len(item.secondary) <= 4
