"""What operators change while it serves: the plan.

In: a plan's file as a body. Out: what changed, or the reason why nothing did. Invariant: a tenant's key gets 403,
whatever it sends; a body must say that it is JSON, which no page of another site can have a browser say unasked.
"""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse

from blockc.diag import DiagnosticError
from blockc.diag.json import diagnostics_document
from blockc_runtime.server.access import note
from blockc_runtime.server.auth import caller_of
from blockc_runtime.server.body import read_body
from blockc_runtime.server.errors import ApiError
from blockc_runtime.server.swap import Swaps

MAX_PLAN_BYTES: Final = 64 << 20
_SHOWN = 20


def install(app: FastAPI, swaps: Swaps) -> None:
    """Add the routes."""

    @app.get("/plan")
    async def plan(request: Request) -> Response:
        require_operator(request)
        in_force = swaps.in_force
        return Response(in_force.data, media_type="application/json", headers={"ETag": f'"{in_force.digest}"'})

    @app.post("/admin/plan")
    async def apply(request: Request) -> Response:
        require_operator(request)
        require_json(request)
        data = await read_body(request, MAX_PLAN_BYTES)
        try:
            report = await swaps.apply(data)
        except DiagnosticError as error:
            raise refusal(error) from None
        note(request.scope, plan=report.plan)
        return JSONResponse(report.document())


def require_operator(request: Request) -> None:
    """Raise 403 for a tenant's key."""
    if caller_of(request.scope).tenant is not None:
        raise ApiError(403, "this concerns all tenants: it needs the operator's key", code="operator_only")


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
