"""The sample fleet with a model that knows tools and one of embeddings, served once for all client libraries."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockc.cli import main
from blockc.samples import root
from tests.e2e.fleet import Command, copied, serving
from tests.support.encoders import save_pooling

SAMPLES = ("base", "pirate", "archivist", "german", "loud", "poet", "lawyer")
MORE = """
finetune tooled : sample { weights = "./tooled" }  # the base under another template
finetune find   : sample { weights = "./find" }    # the base without its head for tokens
tenant clients { app tools { model = tooled }  app find { model = find } }
"""
TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>Call by <tool_call>{...}</tool_call>.{{ tools | tojson }}{{ eos_token }}"
    "{% endif %}{% for message in messages %}{{ '<|' + message.role + '|>' + (message.content or '') }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments.items() | list }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = copied(tmp_path_factory.mktemp("clients") / "models", *SAMPLES)
    for name in ("tooled", "find"):
        shutil.copytree(root() / "base", folder / name)
    (folder / "tooled" / "chat_template.jinja").write_text(TEMPLATE)
    save_pooling(folder / "find", "lasttoken", normalize=True)
    spec = folder / "clients.blk"
    spec.write_text((folder / "fleet.blk").read_text(encoding="utf-8") + MORE, encoding="utf-8")
    assert main(["compile", str(spec), "-o", str(folder / "plan.json")]) == 0
    with serving(folder / "plan.json", tmp_path_factory.mktemp("server")) as command:
        yield command.ready()
        assert "Traceback" not in command.log


@pytest.fixture(scope="session")
def sample() -> Path:
    """The directory of the base, for clients that count tokens themselves."""
    return root() / "base"
