"""Fine-tunes added to a spec from outside of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockc.diag import Diagnostics
from blockc.spec import load
from blockc.spec.additions import with_additions
from blockc.spec.deployment import Deployment

SPEC = """
base tiny : hf("./tiny") { }
finetune legal : tiny { weights = "./legal" }
cluster box { node local { device d0 : cpu { memory = 1GiB } } }
tenant acme { app chat { model = tiny } app law { model = legal } }
tenant birch { app chat { model = tiny } quota { requests = 0.4rps  tokens = 1Ktok/s } }
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    (tmp_path / "fleet.blk").write_text(SPEC)
    return load(tmp_path / "fleet.blk", environ={}).require()


def test_an_addition_is_a_fine_tune_with_its_app(deployment: Deployment) -> None:
    diags = Diagnostics()
    more = with_additions(deployment, ["acme/poems=./poems", "birch/law:legal=/data/strict=er"], diags=diags)
    assert not list(diags)
    assert [app.address for app in more.apps] == ["acme/chat", "acme/law", "acme/poems", "birch/chat", "birch/law"]
    poems, law = more.fine_tunes["acme/poems"], more.fine_tunes["birch/law"]
    assert (poems.parent, law.parent) == ("tiny", "legal")
    assert (poems.source.written, law.source.written) == ("./poems", "/data/strict=er")  # type: ignore[union-attr]
    assert more.digest != deployment.digest
    assert with_additions(deployment, [], diags=diags) == deployment
    again = with_additions(deployment, ["birch/law:legal=/data/strict=er", "acme/poems=./poems"], diags=diags)
    assert again.digest == more.digest


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "BC109"), ("acme/poems", "BC109"), ("acme=./x", "BC109"), ("acme/a/b=./x", "BC109"),
        ("nobody/poems=./x", "BC101"), ("acme/poems:smol=./x", "BC101"), ("acme/chat=./x", "BC106"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_diagnostic(deployment: Deployment, text: str, code: str) -> None:
    diags = Diagnostics()
    assert with_additions(deployment, [text], diags=diags).fine_tunes == deployment.fine_tunes
    (item,) = diags
    assert item.code.id == code
    assert str(item.primary.span if item.primary else "") == "--add:1:1"


def test_the_same_twice(deployment: Deployment) -> None:
    diags = Diagnostics()
    with_additions(deployment, ["acme/poems=./x", "acme/poems=./y"], diags=diags)
    assert [(item.code.id, str(item.primary.span if item.primary else "")) for item in diags] == [
        ("BC106", "--add:2:1")
    ]
