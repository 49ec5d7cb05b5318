"""Tokenizers, templates and generation defaults: taken as a whole or refused, never dropped."""

from __future__ import annotations

import json

import pytest

from blockc.diag import Diagnostics
from blockc.tune.assets import check_assets, stop_token_ids, store_assets
from blockc.zoo import Zoo
from tests.support.deployments import AT

TOKENIZER = json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0},
                                                                        "unk_token": "a"}})  # fmt: skip


@pytest.fixture
def tuned(tmp_path):
    """A fine-tune without files, above a base with a tokenizer."""
    for name in ("tuned", "base"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "tokenizer.json").write_text(TOKENIZER)
    return tmp_path / "tuned"


def _stored(tuned, tmp_path):
    diags = Diagnostics()
    directories = (tuned, tmp_path / "base")
    found = store_assets(directories, Zoo(tmp_path / "zoo", create=True), diags=diags, at=AT)
    return found, [item.code.id for item in diags]


def test_a_fine_tune_without_tokenizer_files_takes_its_bases(tuned, tmp_path):
    found, codes = _stored(tuned, tmp_path)
    assert list(found) == ["tokenizer.json"]
    assert codes == []


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_part_of_a_tokenizer_is_not_passed_over(name, tuned, tmp_path):
    (tuned / name).write_text("{}")
    assert _stored(tuned, tmp_path)[1] == ["BC203"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", TOKENIZER.encode().replace(b"WordLevel", b"Nothing")),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"a": 1, "a": 2}'),
        ("generation_config.json", b'{"temperature": NaN}'),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_a_damaged_file_is_reported(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    diags = Diagnostics()
    check_assets(tmp_path, set(), written="./model", diags=diags, at=AT)
    assert [item.code.id for item in diags] == ["BC203"]


@pytest.mark.parametrize(
    ("stated", "expected"), [(None, (7,)), (3, (3,)), ([5, 3, 5], (3, 5)), ([], (7,)), ("3", None), ([3, "4"], None),
                             (True, None), (2.0, None)]
)  # fmt: skip
def test_stop_ids(stated, expected, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    diags = Diagnostics()
    ids = stop_token_ids((tmp_path,), {"eos_token_id": 7}, diags=diags, at=AT)
    assert diags.has_errors == (expected is None)
    assert expected is None or ids == expected
