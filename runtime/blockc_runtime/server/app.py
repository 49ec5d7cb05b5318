"""The HTTP surface: every route in one place.

In: an `EngineClient`, the catalogue, keys. Out: an ASGI app. Invariant: all routes but ``/health``
and ``/ready`` pass the keys; an app of another tenant and one that does not exist look the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata

from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse

from blockc_runtime.server import errors, live, ui
from blockc_runtime.server.access import AccessMiddleware, AuditLine, Watcher, note
from blockc_runtime.server.auth import KeyMiddleware, KeyRing, caller_of
from blockc_runtime.server.body import read_body
from blockc_runtime.server.calls import Calls
from blockc_runtime.server.catalogue import Catalogue, ServedApp, Yields
from blockc_runtime.server.chat import ChatFormat
from blockc_runtime.server.completions import CompletionFormat
from blockc_runtime.server.embeddings import check_dimensions
from blockc_runtime.server.engine_client import EngineClient
from blockc_runtime.server.errors import ApiError, echo, invalid
from blockc_runtime.server.generation import chat_generation, classification, completion_generation, embedding
from blockc_runtime.server.metrics import CONTENT_TYPE, Metrics
from blockc_runtime.server.openapi import document
from blockc_runtime.server.quotas import Quota, Quotas
from blockc_runtime.server.schemas import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    TokenizeBody,
    model_name,
    parse_object,
    validate,
)
from blockc_runtime.server.tokenize import detokenized, tokenized

MAX_BODY_BYTES = 4 * 1024 * 1024


def create_app(
    engine_client: EngineClient,
    *,
    catalogue: Catalogue,
    metrics: Metrics,
    keys: KeyRing | None = None,
    audit: Callable[[AuditLine], None] | None = None,
    watchers: Sequence[Watcher] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    make_page: Callable[[], ui.SentPage] | None = None,
    operations: Callable[[FastAPI], None] | None = None,
) -> FastAPI:
    """Return the app. ``keys`` None: everybody who can connect may use everything.

    ``make_page`` None: no ``/ui``. ``audit`` takes a line about each request, ``watchers`` all that is known of it.
    ``operations`` adds what changes what is served.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)
    app.add_middleware(KeyMiddleware, keys=keys)
    auditing: tuple[Watcher, ...] = () if audit is None else (lambda exchange: audit(exchange.line()),)
    app.add_middleware(AccessMiddleware, watchers=(*auditing, *watchers))
    if make_page is not None:
        ui.install(app, make_page, lambda: catalogue.epoch)
        live.install(app, live.Feed(engine_client, metrics))
    quotas = Quotas(lambda tenant: _quota(keys, catalogue, tenant))
    calls = Calls(engine_client, metrics, quotas)
    _add_state_routes(app, engine_client, metrics)
    if operations is not None:
        operations(app)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        served = catalogue.visible(caller_of(request.scope))
        return JSONResponse({"object": "list", "data": [_model_entry(entry) for entry in served]})

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> Response:
        return JSONResponse(_model_entry(_find(catalogue, request, model)))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        fields = parse_object(await read_body(request, max_body_bytes))

        async def attempt() -> Response:
            served = _find(catalogue, request, model_name(fields), yields="text")
            body = validate(CompletionBody, fields)
            calls.check_room(served, caller_of(request.scope))
            generation = await completion_generation(body, served)
            return calls.answer(generation, CompletionFormat(generation, body), body, caller_of(request.scope))

        return await calls.on_one_plan(attempt)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        fields = parse_object(await read_body(request, max_body_bytes))

        async def attempt() -> Response:
            served = _find(catalogue, request, model_name(fields), yields="text")
            body = validate(ChatBody, fields)
            calls.check_room(served, caller_of(request.scope))
            generation = await chat_generation(body, served)
            return calls.answer(generation, ChatFormat(generation, body), body, caller_of(request.scope))

        return await calls.on_one_plan(attempt)

    @app.post("/v1/classify")
    async def classify(request: Request) -> Response:
        fields = parse_object(await read_body(request, max_body_bytes))

        async def attempt() -> Response:
            served = _find(catalogue, request, model_name(fields), yields="scores")
            body = validate(ClassifyBody, fields)
            calls.check_room(served, caller_of(request.scope))
            return calls.classify(await classification(body, served), caller_of(request.scope))

        return await calls.on_one_plan(attempt)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        fields = parse_object(await read_body(request, max_body_bytes))

        async def attempt() -> Response:
            served = _find(catalogue, request, model_name(fields), yields="embedding")
            body = validate(EmbeddingBody, fields)
            check_dimensions(body, served)
            calls.check_room(served, caller_of(request.scope))
            return calls.embed(await embedding(body, served), body, caller_of(request.scope))

        return await calls.on_one_plan(attempt)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        fields = parse_object(await read_body(request, max_body_bytes))
        served = _find(catalogue, request, model_name(fields))
        return JSONResponse(await tokenized(validate(TokenizeBody, fields), served))

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        fields = parse_object(await read_body(request, max_body_bytes))
        served = _find(catalogue, request, model_name(fields))
        return JSONResponse(await detokenized(validate(DetokenizeBody, fields), served))

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document(with_operations=operations is not None))

    @app.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": metadata.version("blockc")})

    return app


def _quota(keys: KeyRing | None, catalogue: Catalogue, tenant: str) -> Quota:
    """What the keys file says, and the plan where that says nothing."""
    own = Quota() if keys is None else keys.quota(tenant)
    return own.over(catalogue.quota(tenant))


def _add_state_routes(app: FastAPI, client: EngineClient, metrics: Metrics) -> None:
    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        return JSONResponse({"status": "alive"})

    @app.api_route("/ready", methods=["GET", "HEAD"])
    async def ready() -> Response:
        state = "draining" if client.draining else client.state.value
        return JSONResponse({"status": state}, 200 if client.serving else 503)

    @app.get("/metrics")
    async def prometheus(request: Request) -> Response:
        tenant = caller_of(request.scope).tenant
        if tenant is None:
            metrics.observe_stats(await client.stats_within())
        text = metrics.text(tenant)
        return Response(text, headers={"content-type": CONTENT_TYPE})


# What a model yields, in words, and the route for it.
_ROUTES: dict[Yields, tuple[str, str]] = {
    "text": ("text", "/v1/completions"),
    "scores": ("scores of classes", "/v1/classify"),
    "embedding": ("embeddings", "/v1/embeddings"),
}


def _find(catalogue: Catalogue, request: Request, model: str, *, yields: Yields | None = None) -> ServedApp:
    """Raises 404, and 400 for a model of which the route cannot show what it yields."""
    served = catalogue.find(model, caller_of(request.scope))
    if served is not None:
        note(request.scope, model=served.model)
    if served is None:
        raise ApiError(
            404,
            f"the model `{echo(model)}` does not exist or this key may not use it",
            param="model",
            code="model_not_found",
        )
    if yields not in (None, served.yields):
        what, route = _ROUTES[served.yields]
        raise invalid(f"this model yields {what}; use {route}", param="model")
    return served


def _model_entry(served: ServedApp) -> dict[str, object]:
    return {
        "id": served.model,
        "object": "model",
        "created": 0,
        "owned_by": served.tenant,
        "max_model_len": served.max_model_len,
    }
