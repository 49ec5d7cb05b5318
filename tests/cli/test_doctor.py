"""`blockc doctor` and `blockc completion`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blockc.cli import machine, main
from blockc.cli.doctor import examine
from blockc.cli.machine import Gpu
from blockc.plan import write_plan
from tests.runtime.server import world


def test_this_machine(tmp_path: Path, capsys) -> None:
    """Tests run where blockc works."""
    assert main(["doctor", "--zoo", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "everything works"
    assert main(["doctor", "--zoo", str(tmp_path / "not" / "yet"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    states = {finding["what"]: finding["state"] for finding in document["findings"]}
    assert states["solver"] == states["torch"] == states["sockets"] == "ok"


def test_a_package_of_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["typer>=999", "nosuch-package", "x; extra == 'y'"])
    assert main(["doctor", "--zoo", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "needed is >=999" in out
    assert "nosuch-package is missing" in out
    assert out.endswith("1 of 12 do not work\n")


def test_a_driver_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "gpus", lambda: (Gpu(name="x", memory_bytes=1),))
    (found,) = [finding for finding in examine(tmp_path) if finding.what == "cuda"]
    assert found.state == "fail"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    main(["doctor", "--zoo", str(tmp_path)])
    out = capsys.readouterr().out
    assert "a token is set" in out
    assert "canary" not in out


def test_gpus_as_the_driver_names_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\necho 'odd, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == (Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 << 20),)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpus() == ()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys) -> None:
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert "_BLOCKC_COMPLETE=complete_" + shell in out
    assert out.startswith("# Put this into ")
    assert main(["completion", "tcsh"]) == 64


@pytest.mark.parametrize(
    ("words", "wanted"), [("blockc comp", {"compile", "completion"}), ("blockc viz --aga", {"--against"})]
)
def test_what_a_shell_gets(words: str, wanted: set[str]) -> None:
    env = os.environ | {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_BLOCKC_COMPLETE": "complete_bash",
    }
    program = "import sys; from blockc.cli import main; sys.argv[1:] = []; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == wanted
    assert "Traceback" not in done.stderr


def test_secrets_of_a_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    names = {"acme": ("ACME_KEY", "GONE_KEY"), "birch": ("BIRCH_KEY",)}
    plan = world.plan({}, quotas={tenant: {"key_secrets": own} for tenant, own in names.items()})
    write_plan(plan, tmp_path / "plan.json")
    monkeypatch.setenv("ACME_KEY", "sk-canary-secret")
    (tmp_path / "BIRCH_KEY").write_text("sk-canary-secret\n")
    command = ["doctor", "--zoo", str(tmp_path), "--plan", str(tmp_path / "plan.json"), "--secrets", str(tmp_path)]
    assert main([*command, "--json"]) == 1
    out = capsys.readouterr().out
    assert "canary" not in out
    found = [(item["what"], item["state"]) for item in json.loads(out)["findings"] if "secret" in item["what"]]
    assert found == [
        ("secret ACME_KEY", "ok"), ("secret GONE_KEY", "fail"), ("secret BIRCH_KEY", "ok"), ("secrets", "fail"),
    ]  # fmt: skip
    (tmp_path / "BIRCH_KEY").write_text("sk-of-birch-alone")
    monkeypatch.setenv("GONE_KEY", "sk-of-acme-again")
    assert main(command) == 0


def test_a_plan_that_is_not_there_is_told_as_json(tmp_path: Path, capsys) -> None:
    assert main(["doctor", "--plan", str(tmp_path / "none"), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["command"], document["ok"]) == ("doctor", False)
    assert [item["code"] for item in document["diagnostics"]] == ["BC003"]
