"""The fields of a body that say what an answer has to look like, as one grammar.

In: a checked body. Out: a grammar for the engine, or none. Invariant: a schema that cannot be followed to the letter is
a 400 that names its field and what is wrong.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

from blockc_runtime import structured
from blockc_runtime.server.errors import invalid
from blockc_runtime.server.schemas import ChatBody, CompletionBody, ResponseFormat, StructuredOutputs

_OBJECT: dict[str, Any] = {"type": "object"}
_Asked = tuple[str, Callable[[Any], str], Any]


async def grammar_of(body: CompletionBody | ChatBody) -> str | None:
    """Return the grammar that answers have to follow, None: any text. Raises 400."""
    asked = list(_asked(body))
    if not asked:
        return None
    field, make, value = asked[0]
    if len(asked) > 1:
        raise invalid(f"`{asked[1][0]}` says again what an answer has to be, as `{field}` does", param=asked[1][0])
    if body.ignore_eos:
        raise invalid(f"an answer by `{field}` has an end: `ignore_eos` does not go with it", param="ignore_eos")
    return await grammar(field, make, value)


async def grammar(field: str, make: Callable[[Any], str], value: Any) -> str:
    """Return the grammar that a field asks for, made beside the event loop: it may take long. Raises 400."""
    try:
        return await asyncio.to_thread(make, value)
    except (structured.GrammarError, RecursionError) as error:
        message = str(error) if isinstance(error, structured.GrammarError) else "it is nested too deeply"
        raise invalid(f"`{field}` cannot be followed: {message}", param=field) from None


def _asked(body: CompletionBody | ChatBody) -> Iterator[_Asked]:
    if body.response_format is not None:
        yield from _response_format(body.response_format)
    if body.structured_outputs is not None:
        yield from _structured_outputs(body.structured_outputs)
    if body.guided_json is not None:
        yield "guided_json", structured.json_schema, _schema(body.guided_json, "guided_json")
    if body.guided_regex is not None:
        yield "guided_regex", structured.regex, body.guided_regex
    if body.guided_choice is not None:
        yield "guided_choice", structured.choice, body.guided_choice
    if body.guided_grammar is not None:
        yield "guided_grammar", structured.lark, body.guided_grammar


def _response_format(asked: ResponseFormat) -> Iterator[_Asked]:
    if (asked.json_schema is not None) != (asked.type == "json_schema"):
        message = "`response_format.json_schema` goes with the type `json_schema`, and only with it"
        raise invalid(message, param="response_format.json_schema")
    if asked.json_schema is not None:
        yield "response_format.json_schema.schema", structured.json_schema, asked.json_schema.schema_
    elif asked.type == "json_object":
        yield "response_format", structured.json_schema, _OBJECT


def _structured_outputs(asked: StructuredOutputs) -> Iterator[_Asked]:
    field = "structured_outputs"
    if len(asked.model_fields_set) != 1:
        raise invalid(f"`{field}` takes one of its fields", param=field)
    if asked.json_ is not None:
        yield f"{field}.json", structured.json_schema, _schema(asked.json_, f"{field}.json")
    if asked.regex is not None:
        yield f"{field}.regex", structured.regex, asked.regex
    if asked.choice is not None:
        yield f"{field}.choice", structured.choice, asked.choice
    if asked.grammar is not None:
        yield f"{field}.grammar", structured.lark, asked.grammar
    if asked.json_object is not None:
        yield f"{field}.json_object", structured.json_schema, _OBJECT


def _schema(value: str | dict[str, Any], field: str) -> Any:
    """Return a schema that may be given as text."""
    if isinstance(value, dict):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError):
        raise invalid(f"`{field}` is not JSON", param=field) from None
    if not isinstance(schema, dict | bool):
        raise invalid(f"`{field}` is not a JSON schema: it is neither an object nor true or false", param=field)
    return schema
