"""`blockc init`: what it finds, what it drafts, and that it overwrites nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from blockc.cli import main
from blockc.samples import root
from blockc.spec import load
from blockc.spec.draft import DraftDevice, draft, find_models

DEVICES = (DraftDevice(kind="cpu", memory="4GiB", reserve="512MiB"),)
LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "dtype": "bfloat16"}


def model(folder: Path, config: dict[str, object], *, adapter: bool = False) -> None:
    folder.mkdir(parents=True)
    (folder / ("adapter_config.json" if adapter else "config.json")).write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")


def test_the_samples(tmp_path: Path, capsys) -> None:
    """What it drafts of them checks, and is not written over."""
    shutil.copytree(root(), tmp_path / "models")
    spec = tmp_path / "models" / "ours.blk"
    assert main(["init", str(tmp_path / "models"), "--name", "ours.blk", "--devices", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "1 base, 6 fine-tunes" in out
    assert f"next: blockc check {spec}" in out
    assert main(["check", str(spec)]) == 0
    written = spec.read_text()
    assert "finetune poet" in written
    assert written.count("is `base` right?") == 1, "the same doubt is told once"
    assert main(["init", str(tmp_path / "models"), "--name", "ours.blk"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert spec.read_text() == written


def test_adapters_stand_on_what_they_name(tmp_path: Path) -> None:
    model(tmp_path / "a-base", LLAMA)
    model(tmp_path / "b-base", LLAMA | {"hidden_size": 128})
    model(tmp_path / "b-tuned", LLAMA | {"hidden_size": 128})
    model(tmp_path / "adapters" / "one", {"base_model_name_or_path": "/home/x/b-base/"}, adapter=True)
    model(tmp_path / "adapters" / "two", {"base_model_name_or_path": "someone/one"}, adapter=True)
    model(tmp_path / "adapters" / "lost", {"base_model_name_or_path": "someone/else"}, adapter=True)
    made = draft(find_models(tmp_path), DEVICES)
    assert made is not None
    (tmp_path / "fleet.blk").write_text(made.text)
    deployment = load(tmp_path / "fleet.blk", environ={}).deployment
    assert deployment is not None
    assert set(deployment.bases) == {"a_base", "b_base"}
    assert {name: tune.parent for name, tune in deployment.fine_tunes.items()} == {
        "b_tuned": "b_base",
        "one": "b_base",
        "two": "one",
    }
    assert [written for written, _ in made.unused] == ["./adapters/lost"]
    assert "2 bases are here" in made.text


@pytest.mark.parametrize("name", ["7 b", "import", "ünï", 'a"b${c}', "-"])
def test_any_folder_name(tmp_path: Path, name: str) -> None:
    model(tmp_path / name, LLAMA)
    model(tmp_path / "x" / name, {"base_model_name_or_path": f"x\n}}{name}"}, adapter=True)
    made = draft(find_models(tmp_path), DEVICES)
    assert made is not None
    (tmp_path / "fleet.blk").write_text(made.text, encoding="utf-8")
    result = load(tmp_path / "fleet.blk", environ={})
    assert result.deployment is not None, result.diagnostics.items
    (base,) = result.deployment.bases.values()
    assert base.source.path == tmp_path / name


def test_a_name_that_no_spec_can_hold(tmp_path: Path, capsys) -> None:
    model(tmp_path / "good", LLAMA)
    model(tmp_path / "a\n} tenant evil {", LLAMA)
    assert main(["init", str(tmp_path)]) == 0
    assert "left out: ./a\\n} tenant evil {" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "fleet.blk")]) == 0
    assert "\n} tenant evil {" not in (tmp_path / "fleet.blk").read_text()


def test_what_is_no_model(tmp_path: Path, capsys) -> None:
    model(tmp_path / "odd", {"model_type": "no-such-thing"})
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[" * 100000)
    (tmp_path / "list" / "model.safetensors").write_bytes(b"")
    assert main(["init", str(tmp_path)]) == 1
    assert "BC201" in capsys.readouterr().err
    assert not (tmp_path / "fleet.blk").exists()
    assert main(["init", str(tmp_path / "nowhere")]) == 1
    assert main(["init", str(tmp_path), "--name", "../x.blk"]) == 64
