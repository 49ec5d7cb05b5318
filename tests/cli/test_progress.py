"""What a compilation says on stderr while it runs: bars for people, events for programs, lines for logs."""

from __future__ import annotations

import io
import json
import sys
from itertools import pairwise

import pytest

from blockc.cli import main
from blockc.cli.options import ProgressMode
from blockc.cli.progress import listening
from tests.support.adapters import save_lora
from tests.support.tiny_models import save_model

_SPEC = """
blockc { edition = 1 }
base b : hf("./base") { dtype = fp32  max_model_len = 128 }
finetune tuned : b { weights = "./adapter" }
cluster box { node local { device d0 : cpu { memory = 256MiB } } }
tenant acme { app one { model = tuned } app two { model = b } }
"""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _tell(mode: ProgressMode) -> None:
    with listening(mode) as heard:
        heard.on_stage("read", 0.5)
        for done in range(0, 1001, 100):
            heard.on_bytes("base", done, 1000)
        heard.on_stage("tune", 1.25)


@pytest.mark.parametrize("mode", [ProgressMode.AUTO, ProgressMode.BAR])
def test_bars_on_a_terminal(mode, monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Terminal())
    _tell(mode)
    text = sys.stderr.getvalue()
    assert "base" in text
    assert "\x1b[" in text
    assert "1.25 s" in text


def test_lines_elsewhere(capsys):
    _tell(ProgressMode.AUTO)
    assert capsys.readouterr().err == "    read    0.50 s\n    tune    1.25 s\n"


def test_nothing(capsys):
    _tell(ProgressMode.NONE)
    assert capsys.readouterr() == ("", "")


def test_events_of_a_compilation(tmp_path, monkeypatch, capsys):
    base = save_model("llama", tmp_path / "base")
    save_lora(base, tmp_path / "adapter", target_modules=["q_proj"])
    (tmp_path / "fleet.blk").write_text(_SPEC)
    plan = tmp_path / "plan.json"
    arguments = ["compile", str(tmp_path / "fleet.blk"), "-o", str(plan), "--progress", "json", "--json"]
    monkeypatch.setattr(sys, "argv", ["blockc", *arguments])
    capsys.readouterr()  # what saving them printed
    assert main() == 0
    output = capsys.readouterr()
    json.loads(output.out)
    events = [json.loads(line) for line in output.err.splitlines()]
    assert [each["stage"] for each in events if each["event"] == "stage"] == [
        "read", "trace", "tune", "share", "merge", "quantize", "unify", "place", "lower",
    ]  # fmt: skip
    for model in ("b", "tuned"):
        told = [each for each in events if each["event"] == "bytes" and each["model"] == model]
        assert told[-1]["done_bytes"] == told[-1]["total_bytes"] > 0
        assert all(one["done_bytes"] <= other["done_bytes"] for one, other in pairwise(told))
    file_bytes = (base / "model.safetensors").stat().st_size
    assert 0.9 * file_bytes < max(each["total_bytes"] for each in events if each["event"] == "bytes") <= file_bytes
