"""An adapter that names another base than the spec does is put on it with a warning, if its shapes fit."""

from __future__ import annotations

import json
from dataclasses import replace

import huggingface_hub
import pytest

from blockc.spec.deployment import HubSource
from tests.support.adapters import save_lora
from tests.support.chains import chains_of
from tests.support.deployments import deployment
from tests.support.tiny_models import save_model


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("acme/base", None),
        ("ACME/Base", None),
        ("acme/other", "acme/other"),
        ("/home/somebody/base", None),
        ("/home/somebody/secret-project/other/", "other"),
        (r"C:\Users\somebody\other", "other"),
        ("/home/somebody/.cache/models--acme--base/snapshots/0123", None),
        ("./somebody/other", "other"),
        ("base", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_warns_of_another_base_and_tells_no_more_of_a_path_than_its_end(named, told, tmp_path, monkeypatch):
    base = save_model("llama", tmp_path / "base")
    adapter = save_lora(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(base))
    plan = deployment(base, {"tuned": ("base", adapter)})
    on_the_hub = replace(plan.bases["base"], source=HubSource(repo="acme/base"))
    chains, _, diags = chains_of(replace(plan, bases={"base": on_the_hub}), tmp_path / "zoo")
    assert [item.code.id for item in diags] == ([] if told is None else ["BC210"])
    text = " ".join(" ".join((item.message, *item.notes, item.help)) for item in diags)
    assert told is None or f"made for {told}," in text
    assert "somebody" not in text
    assert "secret" not in text
    assert "tuned" in chains
