"""An adapter that names another hub repository than the spec does is put on it with a warning, if its shapes fit."""

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
    ("named", "codes"),
    [("acme/base", []), ("acme/other", ["BC210"]), ("/home/somebody/base", []), ("base", []), (None, [])],
)
def test_warns_of_another_repository_only(named, codes, tmp_path, monkeypatch):
    base = save_model("llama", tmp_path / "base")
    adapter = save_lora(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": named}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: str(base))
    plan = deployment(base, {"tuned": ("base", adapter)})
    on_the_hub = replace(plan.bases["base"], source=HubSource(repo="acme/base"))
    chains, _, diags = chains_of(replace(plan, bases={"base": on_the_hub}), tmp_path / "zoo")
    assert [item.code.id for item in diags] == codes
    assert "tuned" in chains
