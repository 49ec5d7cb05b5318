"""Chat messages to the text of a prompt, as transformers' ``apply_chat_template`` renders it.

In: a template that came with a model, messages and variables as plain JSON values. Out: text.
Invariant: the template is untrusted: it runs in Jinja's immutable sandbox and sees plain data only;
whatever goes wrong in it is a `ChatTemplateError` with one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MESSAGE_CHARS = 300
Message = Mapping[str, Any]


class ChatTemplateError(Exception):
    """The template cannot be compiled, or refuses these messages."""


class ChatTemplate:
    """A compiled template with the special tokens it may name (``bos_token``, ...)."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            parsed = environment.parse(source)
            self._loops_over_parts = _loops_over_content(parsed)
            self.knows_tools = any(name.name == "tools" for name in parsed.find_all(nodes.Name))
        except (jinja2.TemplateError, RecursionError) as error:
            raise ChatTemplateError(_one_line(error)) from error
        self.source = source
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt's text. ``variables`` win over special tokens, never over messages."""
        try:
            return self._template.render(
                {
                    **self._special_tokens,
                    **variables,
                    "messages": [self._plain(message) for message in messages],
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        # A template may fail in any way that Python can: by adding a list to a string, for one.
        except Exception as error:
            raise ChatTemplateError(_one_line(error)) from error

    def _plain(self, message: Message) -> dict[str, Any]:
        """Drop absent fields; templates that take content for a string get its parts as one."""
        plain = {key: value for key, value in message.items() if value is not None}
        content = plain.get("content")
        if isinstance(content, list) and not self._loops_over_parts:
            plain["content"] = "\n".join(part["text"] for part in content)
        return plain


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationBlock(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML and sorts keys; models were trained on neither.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - the name that templates may pass it by
    return datetime.now().strftime(format)


def _loops_over_content(template: nodes.Template) -> bool:
    """Whether the template walks through content parts itself instead of printing a string."""
    return any(
        (isinstance(part, nodes.Name) and part.name == "content")
        or (isinstance(part, nodes.Getattr) and part.attr == "content")
        or (isinstance(part, nodes.Getitem) and _is_content(part.arg))
        for loop in template.find_all(nodes.For)
        for part in (loop.iter, *loop.iter.find_all((nodes.Name, nodes.Getattr, nodes.Getitem)))
    )


def _is_content(key: nodes.Expr) -> bool:
    return isinstance(key, nodes.Const) and key.value == "content"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:_MESSAGE_CHARS]
