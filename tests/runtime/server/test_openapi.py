"""Our own OpenAPI document against the running server, by schemathesis: no 5xx, nothing the document does not say."""

from __future__ import annotations

import copy
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from blockc_runtime.server.openapi import document
from tests.runtime.server import world
from tests.runtime.server.running import RunningServer

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# Fields that go only with certain others or certain models: with all of them hardly anything that is drawn fits.
DEMANDING = (
    "tools", "tool_choice", "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "min_tokens", "logit_bias", "top_logprobs", "stop_token_ids", "chat_template_kwargs",
)  # fmt: skip
OPERATIONS = [(path, method) for path, methods in document()["paths"].items() for method in methods]


def narrowed() -> dict[str, Any]:
    """The document with models that exist and short answers, so that most of what is drawn is worked on."""
    own = copy.deepcopy(document())
    for name, schema in own["components"]["schemas"].items():
        properties = schema.get("properties", {})
        if name.endswith("Body"):
            properties["model"] = {"enum": [f"{tenant}/{app}" for tenant, app in world.APPS]}
        for field in DEMANDING if name.endswith("Body") else ():
            properties.pop(field, None)
        for limit in ("max_tokens", "max_completion_tokens"):
            if limit in properties:
                properties[limit] = {"type": "integer", "minimum": 1, "maximum": 8}
                schema["required"].append(limit)
        for count in ("n", "best_of"):
            if count in properties:
                properties[count] = {"type": "integer", "minimum": 1, "maximum": 3}
    own["components"]["schemas"]["ChatMessage"] = {
        "type": "object",
        "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": {"type": "string"}},
        "required": ["role", "content"],
        "additionalProperties": False,
    }
    return own


def test_the_document_is_the_servers(http: httpx.Client):
    assert http.get("/openapi.json").json() == document()


@pytest.mark.parametrize("own", [document, narrowed])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_whatever_is_sent_the_answer_is_as_the_document_says(server: RunningServer, own: Any, path: str, method: str):
    operation = schemathesis.openapi.from_dict(own())[path][method.upper()]
    statuses = set()

    @settings(
        max_examples=25 if method == "post" else 5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def sent(case: Any) -> None:
        answer = case.call(base_url=server.url)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    sent()
    if method == "post" and own is narrowed and path not in ("/v1/classify", "/v1/embeddings"):
        assert 200 in statuses  # what was drawn did get through
