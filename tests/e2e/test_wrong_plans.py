"""Plans and zoos that somebody touched: refused by name, or only the app that is concerned."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from blockc.plan import load_plan
from blockc.samples import root
from blockc.samples.manners import manner
from blockc.zoo.pack import read_pack_spans
from tests.e2e.fleet import answer, chat, copied, flipped, serving


def _version(text: str) -> str:
    document = json.loads(text)
    document["plan"]["format_version"] += 1
    return json.dumps(document)


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        (lambda text: text.replace('"tenant":"harbour"', '"tenant":"library"'), "BC901", "was changed after"),
        (lambda text: text.replace('"weight":2.0', '"weight":9.0'), "BC901", "was changed after"),
        (lambda text: text[: len(text) // 2], "BC901", "is not a plan: "),
        (lambda text: "hello", "BC901", "is not a plan: Expecting value at line 1"),
        (lambda text: "", "BC901", "is not a plan"),
        (lambda text: "[]", "BC901", "is not a plan"),
        (_version, "BC902", "has the format version 2, this blockc reads 1"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "viz", "verify"])
def test_an_edited_plan_is_refused(blockc, plan: Path, tmp_path: Path, command, edit, code, words):
    path = tmp_path / "edited.json"
    path.write_text(edit(plan.read_text()))
    assert path.read_text() != plan.read_text()
    ended = blockc(command, path, *(() if command == "viz" else ("--zoo", plan.parent / "zoo")))
    assert ended.code == 1
    assert ended.out == ""
    assert f"error[{code}]" in ended.errors
    assert "edited.json" in ended.errors
    assert words in ended.errors
    assert "compile the spec again" in ended.errors


@pytest.mark.parametrize("command", ["serve", "verify"])
def test_a_missing_zoo_is_named(blockc, plan: Path, tmp_path: Path, command):
    models = ("--models", root()) if command == "verify" else ()
    ended = blockc(command, plan, "--zoo", tmp_path / "none", *models)
    assert ended.code == 1
    assert "BC904" in ended.errors
    assert "none" in ended.errors
    assert "--zoo DIR" in ended.errors


def test_missing_models_are_named_before_anything_is_served(blockc, plan: Path, tmp_path: Path):
    ended = blockc("verify", plan, "--models", tmp_path)
    assert ended.code == 1
    assert "BC201" in ended.errors
    assert "--models DIR" in ended.errors


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (None, "BC003"),
        ("{", "BC001"),
        ('["sk-12345678"]', "BC104"),
        ('{"nobody": ["sk-12345678"]}', "BC101"),
        ('{"harbour": ["short"]}', "BC109"),
    ],
)
def test_a_wrong_keys_file_is_refused_without_showing_a_key(blockc, plan: Path, tmp_path: Path, keys, code):
    path = tmp_path / "keys.json"
    if keys is not None:
        path.write_text(keys)
    ended = blockc("serve", plan, "--keys", path)
    assert ended.code == 1
    assert code in ended.errors
    assert "= help:" in ended.errors
    assert "12345678" not in ended.errors


def test_a_taken_port_and_an_open_address_are_refused(blockc, plan: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = blockc("serve", plan, "--port", taken.getsockname()[1])
    assert ended.code == 1
    assert "cannot listen on 127.0.0.1" in ended.errors
    assert "--port 0" in ended.errors
    ended = blockc("serve", plan, "--host", "0.0.0.0")
    assert ended.code == 1
    assert "give --keys FILE" in ended.errors
    assert blockc("serve", plan, "--port", "99999").code == 64


def _pack_with(zoo: Path, wanted: Callable[[str], bool]) -> tuple[Path, str, int]:
    """A pack that holds a wanted tensor, the tensor's digest, and the place of one of its bytes."""
    for path in sorted((zoo / "packs").iterdir()):
        for span in read_pack_spans(path):
            if span.end > span.start and wanted(span.name):
                return path, span.name, (span.start + span.end) // 2
    raise AssertionError("no such tensor")


@pytest.fixture
def zoo(plan: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plan.parent / "zoo", tmp_path / "zoo")


def test_a_flipped_bit_that_all_models_share_refuses_the_plan(plan: Path, zoo: Path, tmp_path: Path):
    loaded = load_plan(plan)
    lists = [set(loaded.paths[chain.path].blocks) for chain in loaded.chains]
    shared = {tensor.digest for block in set.intersection(*lists) for tensor in loaded.blocks[block].tensors.values()}
    path, tensor, place = _pack_with(zoo, shared.__contains__)
    flipped(path, at=place)
    with serving(plan, tmp_path, "--zoo", str(zoo)) as command:
        assert command.wait() == 1
        for word in ("error[BC903]: ", path.name, f"the bytes of tensor {tensor} were changed", "compile again"):
            assert word in command.log
        assert "BC903: BC903" not in command.log
        assert "Traceback" not in command.log


def test_a_flipped_bit_of_one_fine_tune_stops_that_one_only(blockc, plan: Path, zoo: Path, tmp_path: Path):
    loaded = load_plan(plan)
    blocks = {tensor.digest for block in loaded.blocks.values() for tensor in block.tensors.values()}
    path, tensor, place = _pack_with(zoo, lambda digest: digest not in blocks)
    flipped(path, at=place)
    ended = blockc("verify", plan, "--zoo", zoo, "--models", root(), "--prompts", 1, "--tokens", 1)
    assert ended.code == 1
    assert "BC903" in ended.errors
    assert f"the bytes of tensor {tensor} were changed" in ended.errors
    with serving(plan, tmp_path, "--zoo", str(zoo)) as command, command.ready().http() as http:
        replies = {
            app.address: http.post("/v1/chat/completions", json=chat(app.address, "What is 2 plus 3?"))
            for app in loaded.apps
        }
        failed = {app for app, reply in replies.items() if reply.status_code != 200}
        assert failed
        assert len(failed) < len(replies)
        for app in failed:
            assert f"{app} cannot be served: " in command.log
            assert f"error[BC903]: {app} cannot be served: " in ended.errors
            message = replies[app].json()["error"]["message"]
            assert "its fine-tune could not be loaded" in message
            assert str(tmp_path) not in message
        assert manner(answer(http, "public/ask", "What is 2 plus 3?")) == "plain"


def test_a_changed_tokenizer_is_named(blockc, plan: Path, zoo: Path):
    digest = load_plan(plan).chains[0].assets["tokenizer.json"]
    flipped(zoo / "blobs" / digest, at=1000)
    ended = blockc("serve", plan, "--zoo", zoo)
    assert ended.code == 1
    assert "BC903" in ended.errors
    assert digest in ended.errors
    assert "delete that file and compile again" in ended.errors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "there is no tokenizer.json"),
        ("{% if %}", "the chat template cannot be compiled"),
    ],
)
def test_a_model_that_cannot_be_talked_to_is_named(blockc, tmp_path: Path, change, words):
    folder = copied(tmp_path, "base", "german")
    if change is None:
        (folder / "base" / "tokenizer.json").unlink()
    else:
        path = folder / "base" / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": change}))
    assert blockc("compile", folder / "small.blk", "-o", folder / "plan.json").code == 0
    ended = blockc("serve", folder / "plan.json")
    assert ended.code == 1
    assert "the model `german` of berlin/chat: " in ended.errors
    assert words in ended.errors
    assert "correct the model's files and compile again" in ended.errors
