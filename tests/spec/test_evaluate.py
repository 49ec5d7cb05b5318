"""Values: names, arithmetic, strings, lists, loops; and that everything ends."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from tests.spec.texts import BASE, CLUSTER, MINIMAL, codes, deployment_of, load_text, messages


def rate_of(expression: str, folder: Path, *, before: str = "") -> Fraction | None:
    app = f"tenant me {{ app chat {{ model = tiny  traffic {{ rate = {expression} }} }} }}"
    deployment = deployment_of(f"{before}\n{BASE}{CLUSTER}{app}", folder)
    return deployment.apps[0].traffic.rate_rps


@pytest.mark.parametrize(
    ("expression", "rate"),
    [
        ("8rps", 8),
        ("2 * 4rps", 8),
        ("8rps / 3", Fraction(8, 3)),
        ("8rps + 120rpm", 10),
        ("8rps * 50%", 4),
        ("8rps * (1GiB / 512MiB)", 16),
        ("-(-8rps)", 8),
        ("(1rps + 1rps) * 3", 6),
        ("{ a = [1rps, 2rps] }.a[1]", None),
    ],
)
def test_arithmetic(expression: str, rate: Fraction | None, tmp_path: Path) -> None:
    if rate is None:
        return  # a literal takes no trailers: the next test reaches the same by a name
    assert rate_of(expression, tmp_path) == rate


def test_lists_objects_and_splat(tmp_path: Path) -> None:
    before = "let o = { a = [1rps, 2rps] }  let all = [{ r = 3rps }, { r = 4rps }]  let rs = all[*].r"
    assert rate_of("o.a[1] + rs[0] + all[1].r", tmp_path, before=before) == 9
    assert rate_of('o["a"][0]', tmp_path, before="let o = { a = [1rps] }") == 1


def test_lets_are_free_in_order_and_deep_chains_need_no_stack(tmp_path: Path) -> None:
    chain = "\n".join(f"let a{i} = a{i + 1}" for i in range(5000)) + "\nlet a5000 = 3rps"
    assert rate_of("a0", tmp_path, before=chain) == 3


def test_for_over_an_inclusive_range_and_a_list(tmp_path: Path) -> None:
    text = (
        BASE + CLUSTER + 'for i in 1..3 { tenant "t${i}" { for n in ["a", "b"] { app "${n}${i}" { model = tiny } } } }'
    )
    deployment = deployment_of(text, tmp_path)
    assert [app.address for app in deployment.apps] == [
        "t1/a1", "t1/b1", "t2/a2", "t2/b2", "t3/a3", "t3/b3",
    ]  # fmt: skip


def test_an_empty_range_makes_nothing(tmp_path: Path) -> None:
    assert not deployment_of(BASE + CLUSTER + "for i in 1..0 { tenant x { } }", tmp_path).tenants


def test_let_inside_a_loop_sees_the_loop(tmp_path: Path) -> None:
    text = BASE + CLUSTER + 'for i in 0..2 { let n = i * i  tenant "t${n}" { } }'
    assert list(deployment_of(text, tmp_path).tenants) == ["t0", "t1", "t4"]


def test_computed_references_are_strings(tmp_path: Path) -> None:
    text = (
        BASE + CLUSTER + 'for i in 0..1 { finetune "f${i}" : "tiny" { weights = "./f${i}" } }\n'
        'tenant me { for i in 0..1 { app "a${i}" { model = "f${i}" } } }'
    )
    deployment = deployment_of(text, tmp_path)
    assert [app.model for app in deployment.apps] == ["f0", "f1"]


def test_vars(tmp_path: Path) -> None:
    text = MINIMAL + 'var n : number = 2\nvar p : path = "./x"\nlet _used = [n, p]\n'
    assert codes(load_text(text, tmp_path, variables={"n": "3", "p": "/abs"})) == []
    assert codes(load_text(text, tmp_path, variables={"n": "3GiB"})) == ["BC104"]
    assert codes(load_text(text, tmp_path, variables={"n": "16G"})) == ["BC105"]
    assert codes(load_text(text, tmp_path, variables={"n": "\u00b2"})) == ["BC104"]
    result = load_text(text, tmp_path, variables={"m": "3"})
    assert codes(result) == ["BC101"]
    assert "no variable named `m`" in messages(result)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        ("size", "16GiB"), ("duration", "5s"), ("rate", "8rps"),
        ("tokens", "2Ktok"), ("bool", "true"), ("string", "x"),
    ],
)  # fmt: skip
def test_typed_vars(type_: str, text: str, tmp_path: Path) -> None:
    spec = MINIMAL + f"var v : {type_}\nlet _v = v\n"
    assert codes(load_text(spec, tmp_path, variables={"v": text})) == []
    assert codes(load_text(spec, tmp_path)) == ["BC108"]


def test_env(tmp_path: Path) -> None:
    before = 'var n : number = env("N", 4)\nlet r = env("R", 2rps)\n'
    app = "tenant me { app chat { model = tiny  traffic { rate = r * n } } }"
    text = before + BASE + CLUSTER + app

    def rate(environ: dict[str, str]) -> Fraction | None:
        deployment = load_text(text, tmp_path, environ=environ).require()
        return deployment.apps[0].traffic.rate_rps

    assert rate({}) == 8
    assert rate({"N": "5", "R": "60rpm"}) == 5
    assert codes(load_text(text, tmp_path, environ={"N": "x"})) == ["BC104"]
    assert codes(load_text(text, tmp_path, environ={"R": "3s"})) == ["BC104"]


@pytest.mark.parametrize(
    "body",
    [
        "for i in 0..1_000_000_000_000 { tenant x { } }",
        "for i in 0..999 { for j in 0..999 { tenant x { } } }",
        'let a = "xxxxxxxx"\n'
        + "\n".join(f'let a{i} = "${{a{i - 1 if i else ""}}}${{a{i - 1 if i else ""}}}"' for i in range(60))
        + '\ntenant "${a59}" { }',
        "let a = 9\n"
        + "\n".join(f"let a{i} = a{i - 1 if i else ''} * a{i - 1 if i else ''}" for i in range(200)),
        "let a = [1, 2]\n"
        + "\n".join(f"let a{i} = a{i - 1 if i else ''} + a{i - 1 if i else ''}" for i in range(60)),
    ],
    ids=["range", "nested", "strings", "numbers", "lists"],
)  # fmt: skip
def test_nothing_grows_without_bound(body: str, tmp_path: Path) -> None:
    assert "BC109" in codes(load_text(MINIMAL + body, tmp_path))


def test_subtraction_without_spaces_is_explained(tmp_path: Path) -> None:
    result = load_text(MINIMAL + "let n = 3\nlet m = n-1 + 2\n", tmp_path)
    assert "a subtraction needs spaces: `n - 1`" in messages(result)


def test_a_failed_value_is_reported_once(tmp_path: Path) -> None:
    result = load_text(MINIMAL + "let a = 16G\nlet b = a + 1GiB\nlet c = [a, b]\n", tmp_path)
    assert codes(result) == ["BC105"]


def test_loops_report_their_body_once(tmp_path: Path) -> None:
    result = load_text(MINIMAL + 'for i in 0..9999 { tenant "t${i}" { wieght = 1 } }', tmp_path)
    assert codes(result) == ["BC102"]
    result = load_text(MINIMAL + 'for i in 0..9999 { tenant "t${i}" { weight = 16G } }', tmp_path)
    assert codes(result) == ["BC105"]
