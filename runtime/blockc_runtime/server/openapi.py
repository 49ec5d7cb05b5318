"""The OpenAPI document of the routes, from the models that check their bodies.

In: nothing. Out: the document as plain JSON values. Invariant: what it says a body may hold is what `schemas.py` takes;
every route answers errors in one form.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

from pydantic.json_schema import models_json_schema

from blockc_runtime.server.schemas import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    LoadAdapterBody,
    TokenizeBody,
    UnloadAdapterBody,
)

_BODIES = (
    CompletionBody,
    ChatBody,
    ClassifyBody,
    EmbeddingBody,
    TokenizeBody,
    DetokenizeBody,
    LoadAdapterBody,
    UnloadAdapterBody,
)
_REF = "#/components/schemas/{model}"

_INTEGER, _STRING, _NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


def _object(**properties: Any) -> dict[str, Any]:
    """An object that has these fields, and may have more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _NULL]}


_USAGE = _object(prompt_tokens=_INTEGER, completion_tokens=_INTEGER, total_tokens=_INTEGER)
_ENDED = {"enum": ["stop", "length", "tool_calls"]}
_MODEL = _object(id=_STRING, object={"const": "model"}, created=_INTEGER, owned_by=_STRING, max_model_len=_INTEGER)
_ERROR = _object(error=_object(message=_STRING, type=_STRING, param=_or_null(_STRING), code=_or_null(_STRING)))


def _answer(kind: str, **choice: Any) -> dict[str, Any]:
    return _object(
        id=_STRING,
        object={"const": kind},
        created=_INTEGER,
        model=_STRING,
        choices=_list(_object(index=_INTEGER, finish_reason=_ENDED, logprobs=_or_null({"type": "object"}), **choice)),
        usage=_USAGE,
    )


_CALL = _object(id=_STRING, type={"const": "function"}, function=_object(name=_STRING, arguments=_STRING))
_MESSAGE = _object(role={"const": "assistant"}, content=_or_null(_STRING))
_MESSAGE["properties"]["tool_calls"] = _list(_CALL)
_NUMBERS = _list({"type": "number"})
_SCORED: Any = {"label": _STRING, "probs": _NUMBERS, "logits": _NUMBERS}
_SCORES = _object(
    object={"const": "list"},
    model=_STRING,
    data=_list(
        {
            "anyOf": [
                _object(index=_INTEGER, **_SCORED, num_classes=_INTEGER),
                _object(
                    index=_INTEGER, tokens=_list(_object(id=_INTEGER, text=_STRING, **_SCORED)), num_classes=_INTEGER
                ),
            ]
        }
    ),
    usage=_USAGE,
)
_VECTORS = _object(
    object={"const": "list"},
    model=_STRING,
    data=_list(_object(object={"const": "embedding"}, index=_INTEGER, embedding={"anyOf": [_NUMBERS, _STRING]})),
    usage=_object(prompt_tokens=_INTEGER, total_tokens=_INTEGER),
)
_STATE = _object(status=_STRING)


@cache
def document(*, with_operations: bool = False) -> dict[str, Any]:
    """Return the document. ``with_operations``: also of what operators change (`admin.py`)."""
    _, schemas = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REF)
    tokens = _object(count=_INTEGER, max_model_len=_INTEGER, tokens=_list(_INTEGER))
    paths = {
        "/v1/models": {"get": _operation("The models this key may use", _object(data=_list(_MODEL)))},
        "/v1/models/{model}": {
            "get": {
                **_operation("One of them", _MODEL, 404),
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": _STRING}],
            }
        },
        "/v1/completions": {
            "post": _call("Go on with prompts", CompletionBody, _answer("text_completion", text=_STRING))
        },
        "/v1/chat/completions": {
            "post": _call("Answer a conversation", ChatBody, _answer("chat.completion", message=_MESSAGE))
        },
        "/v1/classify": {"post": _call("Score texts", ClassifyBody, _SCORES, is_streamed=False)},
        "/v1/embeddings": {"post": _call("Vectors of texts", EmbeddingBody, _VECTORS, is_streamed=False)},
        "/tokenize": {"post": _call("The tokens of a text", TokenizeBody, tokens, is_streamed=False)},
        "/detokenize": {
            "post": _call("The text of tokens", DetokenizeBody, _object(prompt=_STRING), is_streamed=False)
        },
        "/version": {"get": _operation("The version of blockc", _object(version=_STRING))},
        "/metrics": {"get": _operation("Metrics in Prometheus' form", _STRING, media="text/plain")},
        "/health": {"get": {**_operation("Whether the server lives", _STATE), "security": []}},
        "/ready": {"get": {**_operation("Whether requests are worked on", _STATE), "security": []}},
    }
    if with_operations:
        paths |= _operations()
    paths["/ready"]["get"]["responses"]["503"] = paths["/ready"]["get"]["responses"]["200"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "blockc", "version": metadata.version("blockc")},
        "paths": paths,
        "security": [{"key": []}],
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operations() -> dict[str, Any]:
    swapped = _object(
        plan=_STRING,
        swapped={"type": "boolean"},
        apps=_object(came=_list(_STRING), gone=_list(_STRING), changed=_list(_STRING)),
        bytes=_object(kept=_INTEGER, loaded=_INTEGER),
        pause_s={"type": "number"},
    )
    apply = _operation("Serve another plan", swapped, 400, 403, 409, 413, 415, 503)
    apply["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    load = _call("Add a fine-tune", LoadAdapterBody, swapped, is_streamed=False)
    unload = _call("Take a fine-tune away that was added", UnloadAdapterBody, swapped, is_streamed=False)
    for operation in (load, unload):
        operation["responses"] |= dict.fromkeys(("403", "409", "415"), operation["responses"]["400"])
    return {
        "/plan": {"get": _operation("The plan that is served", {"type": "object"}, 403)},
        "/admin/plan": {"post": apply},
        "/v1/load_lora_adapter": {"post": load},
        "/v1/unload_lora_adapter": {"post": unload},
    }


def _operation(summary: str, answer: Any, *errors: int, media: str = "application/json") -> dict[str, Any]:
    """A route that answers in one form, and with these errors beside those of every route."""
    error = {
        "description": "why not",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    responses: dict[str, Any] = {"200": {"description": "the answer", "content": {media: {"schema": answer}}}}
    responses |= {str(status): error for status in sorted({401, 500, *errors})}
    return {"summary": summary, "responses": responses}


def _call(summary: str, body: type, answer: dict[str, Any], *, is_streamed: bool = True) -> dict[str, Any]:
    """A route that takes a body."""
    operation = _operation(summary, answer, 400, 404, 413, 429, 503)
    content = {"application/json": {"schema": {"$ref": _REF.format(model=body.__name__)}}}
    operation["requestBody"] = {"required": True, "content": content}
    if is_streamed:
        # Without a schema: before OpenAPI 3.2 nothing says whether it is one of the stream or of each event.
        operation["responses"]["200"]["content"]["text/event-stream"] = {}
    return operation
