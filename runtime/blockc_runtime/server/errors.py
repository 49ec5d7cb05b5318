"""What a client is told when something is wrong, in OpenAI's form.

In: a status and one sentence. Out: ``{"error": {message, type, param, code}}``. Invariant: bodies
are small and hold no traceback, no path of this machine and no large part of what the client sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

_MESSAGE_CHARS = 2000
_ECHO_CHARS = 80

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """Ends a call with an HTTP status, or with an error event where a stream has begun.

    ``diagnostics``: all that is wrong, for operators, in the form of `blockc.diag.json`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        diagnostics: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self._error: dict[str, Any] = {
            "message": message[:_MESSAGE_CHARS],
            "type": _TYPES.get(status, "invalid_request_error"),
            "param": None if param is None else param[:_ECHO_CHARS],
            "code": code,
        }
        if diagnostics is not None:
            self._error["diagnostics"] = diagnostics

    def body(self) -> bytes:
        """Return the JSON text."""
        return json.dumps({"error": self._error}).encode()

    def response(self) -> Response:
        """Return the HTTP response."""
        return Response(self.body(), self.status, headers=self.headers, media_type="application/json")


def echo(text: object) -> str:
    """Return so much of a client's own words that it recognises them."""
    words = str(text)
    return words if len(words) <= _ECHO_CHARS else words[:_ECHO_CHARS] + "..."


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that can never be served."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str) -> ApiError:
    """Return the error for a request that may be repeated later."""
    return ApiError(503, message, headers={"Retry-After": "5"})


def install(app: FastAPI) -> None:
    """Answer every failure of ``app`` in this form."""

    async def on_api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def on_http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = "there is no such route" if error.status_code == 404 else str(error.detail)
        if error.status_code == 405 and (allowed := (error.headers or {}).get("Allow")):
            message = f"this route takes {allowed}"
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def on_bug(_: Request, __: Exception) -> Response:
        return ApiError(500, "internal error").response()  # the traceback goes to the log only

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_bug)
