"""What operators change while it serves: the plan, and fine-tunes.

In: a plan's file as a body, or where a fine-tune lies. Out: what changed, or the reason why nothing did. Invariant: a
tenant's key gets 403, whatever it sends; a body must say that it is JSON, which no page of another site can have a
browser say unasked.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse

from blockc.diag import DiagnosticError
from blockc.diag.json import diagnostics_document
from blockc_runtime.server.access import note
from blockc_runtime.server.adapters import Adapters
from blockc_runtime.server.auth import require_operator
from blockc_runtime.server.body import read_body
from blockc_runtime.server.errors import ApiError
from blockc_runtime.server.schemas import LoadAdapterBody, UnloadAdapterBody, parse_object, validate
from blockc_runtime.server.swap import Swaps

MAX_PLAN_BYTES: Final = 64 << 20
_MAX_BODY_BYTES: Final = 64 << 10
_SHOWN = 20


def install(app: FastAPI, swaps: Swaps, adapters: Adapters | None = None) -> None:
    """Add the routes. ``adapters`` None: none can be loaded."""

    @app.get("/plan")
    async def plan(request: Request) -> Response:
        require_operator(request.scope, "this concerns all tenants")
        in_force = swaps.in_force
        return Response(in_force.data, media_type="application/json", headers={"ETag": f'"{in_force.digest}"'})

    @app.post("/admin/plan")
    async def apply(request: Request) -> Response:
        require_operator(request.scope, "this concerns all tenants")
        require_json(request)
        data = await read_body(request, MAX_PLAN_BYTES)
        try:
            report = await swaps.apply(data)
        except DiagnosticError as error:
            raise refusal(error) from None
        note(request.scope, plan=report.plan)
        return JSONResponse(report.document())

    @app.post("/v1/load_lora_adapter")
    async def load_adapter(request: Request) -> Response:
        fields = await _fields(request)
        body = validate(LoadAdapterBody, fields)
        return await _changed(request, _required(adapters).load(body.lora_name, body.lora_path, body.base_model_name))

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(request: Request) -> Response:
        fields = await _fields(request)
        return await _changed(request, _required(adapters).unload(validate(UnloadAdapterBody, fields).lora_name))


async def _fields(request: Request) -> dict[str, Any]:
    require_operator(request.scope, "this concerns all tenants")
    require_json(request)
    return parse_object(await read_body(request, _MAX_BODY_BYTES))


async def _changed(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    try:
        document = await work
    except DiagnosticError as error:
        raise refusal(error) from None
    note(request.scope, plan=document["plan"])
    return JSONResponse(document)


def _required(adapters: Adapters | None) -> Adapters:
    if adapters is None:
        raise ApiError(
            403, "this server was started without --allow-adapters: no fine-tunes are loaded", code="not_allowed"
        )
    return adapters


def require_json(request: Request) -> None:
    """Raise 415 for a body that does not say that it is JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "the body's content-type must be application/json")


def refusal(error: DiagnosticError) -> ApiError:
    """What is wrong with a plan or a fine-tune, with all that is known of it."""
    items = list(error.diagnostics)
    return ApiError(
        400,
        f"{items[0].code.id}: {items[0].message}",
        code=items[0].code.id,
        diagnostics=diagnostics_document(items[:_SHOWN]),
    )
