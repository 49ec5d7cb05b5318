"""`hf("org/name")`: fetched once, resumed, found again offline; every way to fail says what to do."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import huggingface_hub
import pytest
from huggingface_hub import constants

from blockc.diag import Diagnostics
from blockc.spec.deployment import HubSource
from blockc.tune.source import commit_of, download
from tests.support.deployments import deployment
from tests.support.hub import COMMIT, Hub, serving
from tests.support.serving import compiled
from tests.support.tiny_models import save_model

_FILES = {
    "config.json": json.dumps({"model_type": "llama"}).encode(),
    "model.safetensors": bytes(range(256)) * 4096,
    "consolidated.safetensors": b"the same once more",
    "modeling.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80\x04.",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with serving(Hub(files=dict(_FILES))) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def _get(repo="acme/base", revision=None):
    diags = Diagnostics()
    root = download(HubSource(repo=repo, revision=revision), diags=diags)
    assert (root is None) == diags.has_errors
    return root, [(item.code.id, " ".join((item.message, *item.notes, item.help))) for item in diags]


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_snapshot_is_named_after_its_commit_and_holds_no_code_and_no_pickle(revision, hub):
    root, found = _get(revision=revision)
    assert not found
    assert {path.name for path in root.iterdir()} == {"config.json", "model.safetensors"}
    assert (root / "model.safetensors").read_bytes() == _FILES["model.safetensors"]
    assert commit_of(HubSource(repo="acme/base", revision=revision), root) == COMMIT


def test_what_is_there_is_not_fetched_again_and_serves_offline(hub, monkeypatch):
    root, _ = _get()
    hub.requests.clear()
    assert _get()[0] == root
    assert not [path for method, path, _ in hub.requests if method == "GET" and path.endswith("safetensors")]
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert _get()[0] == root
    assert not hub.requests


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.breaks_at = 300_000
    root, found = _get()
    assert not found
    assert (root / "model.safetensors").read_bytes() == _FILES["model.safetensors"]
    ranges = [part for method, path, part in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert ranges[0] in ("", "bytes=0-")
    assert int(ranges[1].removeprefix("bytes=").split("-")[0]) > 0


def test_a_token_is_sent(hub, monkeypatch):
    hub.token = "hf_secret"
    assert _get()[0] is None
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert _get()[0] is not None


@pytest.mark.parametrize(
    ("status", "error_code", "words"),
    [
        (403, "GatedRepo", ["on request", "hf auth login"]),
        (401, "RepoNotFound", ["no such repository", "HF_TOKEN"]),
        (404, "RepoNotFound", ["no such repository", "check the name"]),
        (401, "", ["refuses this account (401)", "HF_TOKEN"]),
        (403, "", ["refuses this account (403)", "HF_TOKEN"]),
        (500, "", ["answers with an error (500)", "check the connection"]),
    ],
)
def test_a_refusal_says_what_to_do(status, error_code, words, hub):
    hub.status, hub.error_code = status, error_code
    _, [(code, text)] = _get()
    assert code == "BC201"
    assert "acme/base" in text
    assert all(word in text for word in words), text
    assert "Traceback" not in text


def test_a_revision_that_is_absent_is_named(hub):
    _, [(code, text)] = _get(revision="v2")
    assert code == "BC201"
    assert "no revision `v2`" in text


def test_offline_without_a_copy(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _, [(code, text)] = _get()
    assert code == "BC201"
    assert "HF_HUB_OFFLINE" in text
    assert not hub.requests


def test_no_hub_at_all(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    _, [(code, text)] = _get()
    assert code == "BC201"
    assert "cannot be reached" in text


def test_a_full_disk(hub, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    _, [(code, text)] = _get()
    assert code == "BC201"
    assert "disk is full" in text
    assert "HF_HUB_CACHE" in text


def test_a_repository_with_pickles_only(hub):
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."}
    _, [(code, text)] = _get()
    assert code == "BC206"
    assert "pytorch_model.bin" in text


@pytest.mark.parametrize("repo", ["../../etc", "a/b/c", "acme/base?x=1"])
def test_a_name_that_no_repository_has(repo, hub):
    assert _get(repo=repo)[1][0][0] == "BC201"


def test_a_plan_records_the_commit_that_a_revision_stood_for(hub, tmp_path):
    base = save_model("llama", tmp_path / "base")
    hub.files = {path.name: path.read_bytes() for path in base.iterdir()}
    plan = deployment(base)
    on_the_hub = replace(plan.bases["base"], source=HubSource(repo="acme/base", revision="v1"))
    result = compiled(replace(plan, bases={"base": on_the_hub}), tmp_path / "zoo")
    entry = result.plan.models["base"]
    assert (entry.hub, entry.source, entry.revision) == (True, "acme/base", COMMIT)
