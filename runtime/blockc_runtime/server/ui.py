"""The page that explains the plan, at ``/ui``, for operators.

In: a function that makes the page; whoever starts the server has it, for the runtime does not know what draws plans.
Out: one route, and a way for browsers to sign in. Invariant: the page names every tenant's apps, so that a tenant's
key gets 403; a browser's sign-in opens ``/ui``, its figures and ``/metrics`` and nothing that changes anything, for
browsers send it by themselves, whoever made them ask.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import gzip
from collections.abc import Callable
from typing import Final, Protocol

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blockc_runtime.server import auth

PATH: Final = "/ui"
EVENTS_PATH: Final = "/ui/events"
_SIGNED_IN: Final = frozenset({PATH, EVENTS_PATH, "/metrics"})
_READS: Final = ("GET", "HEAD")
_CHALLENGE: Final = b'Basic realm="blockc: any name, and the operator\'s key", charset="UTF-8"'


class SentPage(Protocol):
    """A page, and the Content-Security-Policy that it was made for."""

    @property
    def html(self) -> str:
        """A whole document."""

    @property
    def policy(self) -> str:
        """Without directives that only headers may have."""


def install(app: FastAPI, make_page: Callable[[], SentPage], version: Callable[[], int]) -> None:
    """Add the route and the sign-in.

    ``make_page`` is called once for a ``version`` of the plan, in a thread, when the page is first asked for.

    To be called after `KeyMiddleware` is added: the sign-in has to see requests first.
    """
    app.add_middleware(SignIn)
    pages = _Pages(make_page, version)

    @app.api_route(PATH, methods=list(_READS))
    async def ui(request: Request) -> Response:
        require_operator(request)
        return await pages.answer("gzip" in request.headers.get("accept-encoding", ""))


def require_operator(request: Request) -> None:
    """Raise 403 for a tenant's key."""
    auth.require_operator(request.scope, "this page shows the apps of all tenants")


class _Pages:
    """The page, plain and compressed, once it was asked for."""

    def __init__(self, make_page: Callable[[], SentPage], version: Callable[[], int]) -> None:
        self._make, self._version = make_page, version
        self._of: int | None = None
        self._lock = asyncio.Lock()
        self._made: tuple[bytes, bytes, str] | None = None

    async def answer(self, compressed: bool) -> Response:
        """Return the response."""
        async with self._lock:
            version = self._version()
            if self._made is None or self._of != version:
                self._made, self._of = await asyncio.to_thread(self._render), version
        plain, small, policy = self._made
        headers = {
            "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if compressed:
            headers["Content-Encoding"] = "gzip"
        return Response(small if compressed else plain, headers=headers, media_type="text/html")

    def _render(self) -> tuple[bytes, bytes, str]:
        page = self._make()
        plain = page.html.encode()
        return plain, gzip.compress(plain, mtime=0), page.policy


class SignIn:
    """Takes a key as the password of Basic authentication, which is what browsers ask people for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; a browser without a key is asked for one at ``/ui``."""
        if scope["type"] != "http" or scope["path"] not in _SIGNED_IN or scope["method"] not in _READS:
            await self._app(scope, receive, send)
            return

        async def challenging(message: Message) -> None:
            if scope["path"] == PATH and message["type"] == "http.response.start" and message["status"] == 401:
                message["headers"] = [*message["headers"], (b"www-authenticate", _CHALLENGE)]
            await send(message)

        headers = [(name, _bearer(value) if name == b"authorization" else value) for name, value in scope["headers"]]
        await self._app({**scope, "headers": headers}, receive, challenging)


def _bearer(authorization: bytes) -> bytes:
    """``Basic base64(name:key)`` as ``Bearer key``; anything else as it is."""
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return authorization
    try:
        _, colon, key = base64.b64decode(credentials.strip(), validate=True).partition(b":")
    except binascii.Error:
        return authorization
    return b"Bearer " + key if colon else authorization
