"""The fields of a chat body that are about tools.

In: a checked body, the app it names. Out: `Tools` and, where a call has to come, its grammar; messages as templates
expect them. Invariant: tools are refused where the model's template would not show them to the model.
"""

from __future__ import annotations

from typing import Any

import pydantic_core

from blockc_runtime import structured
from blockc_runtime.server.catalogue import ServedApp
from blockc_runtime.server.errors import invalid
from blockc_runtime.server.schemas import ChatBody, ChatMessage, NamedChoice
from blockc_runtime.server.structured_fields import grammar
from blockc_runtime.server.tools import CLOSE, MAX_CALLS, OPEN, Tools, form_of

_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def tools_of(body: ChatBody, app: ServedApp) -> Tools | None:
    """Return the tools that the model may call; None if there are none. Raises 400."""
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise invalid("`tool_choice` asks for a call, and there are no `tools`", param="tool_choice")
        return None
    template = app.text.chat_template
    if template is None or not template.knows_tools:
        raise invalid("this model's chat template has no place for tools", param="tools")
    parameters: dict[str, Any] = {}
    for index, tool in enumerate(body.tools):
        if tool.function.name in parameters:
            raise invalid("two tools have this name", param=f"tools.{index}.function.name")
        parameters[tool.function.name] = tool.function.parameters or _ANY_OBJECT
    if isinstance(body.tool_choice, NamedChoice) and body.tool_choice.function.name not in parameters:
        raise invalid("`tool_choice` names none of the `tools`", param="tool_choice.function.name")
    if body.tool_choice == "none":
        return None
    form, key = form_of(template.source)
    return Tools(parameters=parameters, form=form, arguments_key=key, is_parallel=body.parallel_tool_calls)


async def calls_grammar(body: ChatBody, tools: Tools | None) -> str | None:
    """Return the grammar of the calls that `tool_choice` asks for; None where the model may do as it likes."""
    if tools is None or body.tool_choice in (None, "auto", "none"):
        return None
    if body.ignore_eos:
        raise invalid("a call has an end: `ignore_eos` does not go with it", param="ignore_eos")
    if isinstance(body.tool_choice, NamedChoice):
        names, field = [body.tool_choice.function.name], "tool_choice"
    else:
        names, field = list(tools.parameters), "tools"
    schema = tools.schema(names)
    if tools.form == "object":
        return await grammar(field, structured.json_schema, schema)
    more = MAX_CALLS - 1 if tools.is_parallel and field == "tools" else 0
    return await grammar(field, lambda value: structured.tagged(value, OPEN, CLOSE, more=more), schema)


def plain_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as templates take them: arguments of calls as objects. Raises 400 for those that are none."""
    plain = [message.model_dump() for message in messages]
    for index, message in enumerate(plain):
        for number, call in enumerate(message["tool_calls"] or ()):
            where = f"messages.{index}.tool_calls.{number}.function.arguments"
            try:
                # As bodies are read: what is no text (half of a surrogate pair) is no JSON, and no number is NaN.
                arguments = pydantic_core.from_json(call["function"]["arguments"] or "{}", allow_inf_nan=False)
            except ValueError:
                raise invalid(f"`{where}` is not JSON", param=where) from None
            if not isinstance(arguments, dict):
                raise invalid(f"`{where}` is not a JSON object", param=where)
            call["function"]["arguments"] = arguments
        message["tool_calls"] = message["tool_calls"] or None
    return plain
