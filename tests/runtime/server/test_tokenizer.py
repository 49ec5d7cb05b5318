"""Tokens and chat prompts are those of transformers for the same files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from blockc.diag import DiagnosticError
from blockc_runtime.server.chat_template import ChatTemplate, ChatTemplateError
from blockc_runtime.server.tokenizer import ChainText, load_chain_text
from tests.runtime.server import world

TEXTS = ("the quick brown", "", " leading", "<s>the</s> <|im_start|>fox", "狐狸 🦊", "a\n\nb")
MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": 'what is 2 < 3 & "so"?'},
    {"role": "assistant", "content": "true"},
    {"role": "user", "content": "ünïcode"},
]
TEMPLATES = {
    "chatml": world.CHAT_TEMPLATE,
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% endif %}{% for m in loop_messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "blocks": (
        "{%- set ns = namespace(count=0) -%}\n"
        "    {% for m in messages %}\n"
        "        {% if m.role == 'system' %}\n"
        "            {% continue %}\n"
        "        {% endif %}\n"
        "  {% set ns.count = ns.count + 1 %}\n"
        "{{ ns.count }}:{{ m | tojson }}\n"
        "  {% generation %}\n{{ m.content | trim }}\n{% endgeneration %}\n"
        "    {% endfor %}\n"
        "{{ messages | tojson(indent=2) }}{{ dict(a=1) | tojson }}{{ tools is none }}"
        "{{ documents is none }}{{ add_generation_prompt }}{{ pad_token is defined }}"
    ),
    "date": "{{ strftime_now('%Y') }}{{ enable_thinking | default('unset') }}",
}  # fmt: skip


def files(tokenizer: str, template: str | None = None, **config: Any) -> dict[str, bytes]:
    settings = {"bos_token": "<s>", "eos_token": "</s>", **config}
    assets = {"tokenizer.json": tokenizer.encode()}
    if template is not None:
        assets["chat_template.jinja"] = template.encode()
    assets["tokenizer_config.json"] = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings}).encode()
    return assets


def reference(assets: Mapping[str, bytes], root: Path) -> Any:
    from transformers import AutoTokenizer

    for name, data in assets.items():
        (root / name).write_bytes(data)
    return AutoTokenizer.from_pretrained(root)


def with_template_processor(tokenizer: str) -> str:
    changed = Tokenizer.from_str(tokenizer)
    bos = changed.token_to_id("<s>")
    changed.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return str(changed.to_str())


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "template_processor", "bare"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False, "add_eos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
        {"bos_token": None, "add_bos_token": True},
        {"pad_token": "<pad>", "extra_special_tokens": ["<extra>"]},
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False}},
    ],
)
def test_tokens_are_those_of_transformers(tmp_path: Path, kind: str, config: dict[str, Any]):
    tokenizer = {
        "byte_level": world.byte_level_tokenizer,
        "byte_fallback": world.byte_fallback_tokenizer,
        "template_processor": lambda: with_template_processor(world.byte_level_tokenizer()),
        "bare": lambda: _without_post_processor(world.byte_level_tokenizer()),
    }[kind]()
    assets = files(tokenizer, **config)
    ours, theirs = load_chain_text(assets), reference(assets, tmp_path)
    for text in (*TEXTS, "<extra>x<pad>"):
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, add_special_tokens=special) == expected
            shown = ours.vocabulary.detokenizer(skip_special_tokens=True)
            whole = theirs.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert shown.feed(expected) + shown.finish() == whole


def _without_post_processor(tokenizer: str) -> str:
    return json.dumps({**json.loads(tokenizer), "post_processor": None})


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("in_config", [False, True])
def test_prompts_are_those_of_transformers(tmp_path: Path, name: str, in_config: bool):
    tokenizer, template = world.byte_level_tokenizer(), TEMPLATES[name]
    assets = files(tokenizer, chat_template=template) if in_config else files(tokenizer, template)
    ours, theirs = load_chain_text(assets), reference(assets, tmp_path)
    assert ours.chat_template is not None
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[:2]):
        for prompt in (True, False):
            for variables in ({}, {"enable_thinking": False}):
                options = {"add_generation_prompt": prompt}
                rendered = ours.chat_template.render(messages, variables=variables, **options)
                expected = theirs.apply_chat_template(messages, tokenize=False, **options, **variables)
                assert rendered == expected
                ids = theirs.apply_chat_template(messages, return_dict=False, **options, **variables)
                assert ours.encode(rendered, add_special_tokens=False) == ids


def test_text_parts_are_joined_unless_the_template_walks_them():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    plain = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    walks = ChatTemplate("{% for m in messages %}{% for p in m['content'] %}({{ p.text }}){% endfor %}{% endfor %}", {})
    assert plain.render(messages, add_generation_prompt=False, variables={}) == "a\nb"
    assert walks.render(messages, add_generation_prompt=False, variables={}) == "(a)(b)"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception('no') }}",
        "{{ messages + 'x' }}",
        "{{ none.x.y }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{% include 'x' %}",
    ],
)
def test_a_template_that_misbehaves_is_an_error(source: str):
    template = ChatTemplate(source, {})
    with pytest.raises(ChatTemplateError) as caught:
        template.render(MESSAGES, add_generation_prompt=True, variables={})
    assert "\n" not in str(caught.value)


def test_variables_do_not_replace_messages():
    template = ChatTemplate("{{ messages | length }}{{ bos_token }}", {"bos_token": "<s>"})
    variables = {"messages": [], "bos_token": "x"}
    assert template.render(MESSAGES, add_generation_prompt=True, variables=variables) == "4x"


@pytest.mark.parametrize(
    "broken",
    [
        {"tokenizer.json": None},
        {"tokenizer.json": b"{}"},
        {"tokenizer.json": b"\xff"},
        {"tokenizer_config.json": b"["},
        {"tokenizer_config.json": b"[]"},
        {"chat_template.jinja": b"{% for %}"},
    ],
)
def test_broken_assets_are_a_diagnostic(broken: dict[str, bytes | None]):
    assets = {**files(world.byte_level_tokenizer(), "x"), **broken}
    with pytest.raises(DiagnosticError) as caught:
        load_chain_text({name: data for name, data in assets.items() if data is not None})
    (problem,) = caught.value.diagnostics
    assert problem.code.id == "BC903"
    assert next(iter(broken)).split(".")[0].split("_")[0] in problem.message


def test_special_tokens_of_the_time_before_they_moved():
    assets = files(world.byte_level_tokenizer(), "{{ pad_token }}")
    assets["special_tokens_map.json"] = json.dumps({"pad_token": {"content": "</s>"}}).encode()
    text = load_chain_text(assets)
    assert text.chat_template is not None
    assert text.chat_template.render([], add_generation_prompt=False, variables={}) == "</s>"


def test_truncation_and_padding_of_the_file_are_off():
    tokenizer = world.tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    text = load_chain_text(files(tokenizer.to_str()))
    assert text.encode("the", add_special_tokens=False) == world.tokenizer().encode("the").ids
    assert len(text.encode("the quick " * 50, add_special_tokens=False)) > 4


_text: ChainText = load_chain_text(files(world.byte_level_tokenizer()))


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_text_goes_there_and_back(text: str):
    state = _text.vocabulary.detokenizer(skip_special_tokens=False)
    assert state.feed(_text.encode(text, add_special_tokens=False)) + state.finish() == text
