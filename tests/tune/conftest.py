"""A base, an adapter of it, and a copy to spoil."""

from __future__ import annotations

import shutil

import pytest

from tests.support.adapters import save_lora
from tests.support.tiny_models import save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_lora(base, tmp_path_factory.mktemp("adapter"), target_modules=["q_proj", "v_proj"])


@pytest.fixture
def copy(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "copy")
