"""Whatever the text: valid specs resolve, broken ones give diagnostics that point into the file."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockc.diag.json import diagnostics_document
from blockc.diag.render import render_all
from blockc.spec import LoadResult, load
from tests.conftest import Promised
from tests.spec.texts import CLUSTER, SPECS, load_text

ERRORS = SPECS.parent / "tests" / "errors"
TEXTS = tuple(
    path.read_text(encoding="utf-8")
    for path in (*sorted(SPECS.glob("*.blk")), *sorted(ERRORS.glob("*.blk")))
    if path.name != "thousand.blk"
)
PIECES = (
    *"{}[]()=:;,.#\"$\\+-*/!<>&|'%\n\t\0é𝄞",
    *("..", "${", "/*", "*/", "//", "==", "for", "in", "let", "var", "import", "as", "true", "null"),
    *("tenant", "app", "x", "16G", "8rps", "0", "1e9", '"', '"a"', "0..9", "env(", "secret(", "hf("),
)

quick = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check_result(result: LoadResult) -> None:
    """Every result, good or bad, is presentable."""
    assert (result.deployment is None) == result.diagnostics.has_errors
    for item in result.diagnostics:
        assert item.message
        assert "\n" not in item.message
        for label in (item.primary, *item.secondary):
            if label is None:
                continue
            lines = result.sources[label.span.file].split("\n")
            span = label.span
            assert 1 <= span.start_line <= span.end_line <= len(lines)
            assert 1 <= span.start_column <= len(lines[span.start_line - 1]) + 1
            assert 1 <= span.end_column <= len(lines[span.end_line - 1]) + 1
            assert (span.start_line, span.start_column) <= (span.end_line, span.end_column)
    rendered = render_all(result.diagnostics, result.sources)
    assert rendered.isprintable() or all(c.isprintable() or c == "\n" for c in rendered)
    diagnostics_document(result.diagnostics)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        match draw(st.integers(0, 3)):
            case 0:
                text = text[:start] + text[end:]
            case 1:
                text = text[:start] + draw(st.sampled_from(PIECES)) + text[start:]
            case 2:
                text = text[:end] + text[start:end] + text[end:]
            case _:
                text = text[:start] + draw(st.sampled_from(PIECES)) + text[end:]
    return text


@quick
@given(mutated())
def test_mutated_specs_never_raise(text: str) -> None:
    check_text(text)


def check_text(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pools.blk").write_bytes((SPECS / "pools.blk").read_bytes())
        result = load_text(text, Path(folder))
        if result.sources:
            check_result(result)


@quick
@given(st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join))
def test_random_tokens_never_raise(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = load_text(text, Path(folder))
        if result.sources:
            check_result(result)


@quick
@given(st.binary(max_size=200))
def test_random_bytes_never_raise(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = load_text(raw, Path(folder))
        assert result.diagnostics.has_errors


@quick
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=3))
def test_random_variables_never_raise(variables: dict[str, str]) -> None:
    check_result(load(SPECS / "large.blk", variables=variables, environ={}))


# ------------------------------------------------------------------- valid specs

identifiers = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True).filter(
    lambda name: name not in ("for", "in", "let", "var", "import", "as", "true", "false", "null")
)
SPACES = st.sampled_from([" ", "\n", "  # a comment\n", " /* and another */ ", "\t", " ; "])


@st.composite
def valid_specs(draw: st.DrawFn) -> tuple[list[str], list[str], int]:
    """Return declarations, the addresses of the apps, and how many fine-tunes there are."""
    names = draw(st.lists(identifiers, min_size=2, max_size=8, unique=True))
    bases = names[: draw(st.integers(1, len(names) - 1))]
    declarations = [CLUSTER]
    for name in bases:
        dtype = draw(st.sampled_from(["bf16", "fp16", "fp32"]))
        declarations.append(f'base {name} : hf("./m/{name}") {{ dtype = {dtype} }}')
    parents = list(bases)
    for name in names[len(bases) :]:
        parent = draw(st.sampled_from(parents))
        declarations.append(f'finetune {name} : {parent} {{ weights = "./a/{name}" }}')
        parents.append(name)
    addresses = []
    for tenant in draw(st.lists(identifiers, max_size=3, unique=True)):
        apps = []
        for app in draw(st.lists(identifiers, max_size=3, unique=True)):
            model = draw(st.sampled_from(parents))
            rate = draw(st.integers(1, 10**6))
            unit = draw(st.sampled_from(["rps", "rpm"]))
            apps.append(f"app {app} {{ model = {model}  traffic {{ rate = {rate}{unit} }} }}")
            addresses.append(f"{tenant}/{app}")
        weight = draw(st.sampled_from(["", "weight = 2 ", "weight = 0.5 "]))
        declarations.append(f"tenant {tenant} {{ {weight}{' '.join(apps)} }}")
    return declarations, sorted(addresses), len(names) - len(bases)


@quick
@given(valid_specs(), st.randoms(use_true_random=False), SPACES.filter(lambda s: ";" not in s))
def test_valid_specs_resolve_whatever_their_order(
    spec: tuple[list[str], list[str], int], random: object, space: str
) -> None:
    check_valid(spec, random, space)


def check_valid(spec: tuple[list[str], list[str], int], random: object, space: str) -> None:
    declarations, addresses, fine_tunes = spec
    with tempfile.TemporaryDirectory() as folder:
        result = load_text("\n".join(declarations), Path(folder))
        check_result(result)
        deployment = result.require()
        assert sorted(app.address for app in deployment.apps) == addresses
        assert len(deployment.fine_tunes) == fine_tunes
        shuffled = list(declarations)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        again = load_text(space.join(shuffled), Path(folder)).require()
        assert again.digest == deployment.digest


MANY = 10_000


@pytest.mark.promise("specs")
@pytest.mark.slow
def test_ten_thousand_mutated_specs(promised: Promised) -> None:
    seen = 0

    @settings(quick, max_examples=MANY)
    @given(mutated())
    def each(text: str) -> None:
        nonlocal seen
        seen += 1
        check_text(text)

    each()
    promised(
        "mutated specs", "10,000: diagnostics with a span only", f"{seen:,} specs, no other end", kept=seen >= MANY
    )


@pytest.mark.promise("specs")
@pytest.mark.slow
def test_ten_thousand_valid_specs(promised: Promised) -> None:
    seen = 0
    spaces = SPACES.filter(lambda s: ";" not in s)

    @settings(quick, max_examples=MANY)
    @given(valid_specs(), st.integers(0, 2**32), spaces)
    def each(spec: tuple[list[str], list[str], int], seed: int, space: str) -> None:
        nonlocal seen
        seen += 1
        check_valid(spec, random.Random(seed), space)

    each()
    promised("valid specs", "10,000 resolve", f"{seen:,} in two orders each, with one digest", kept=seen >= MANY)
