"""The bindings of one handler: JSON-RPC (1.0 and 0.3), REST and gRPC. They refuse what is not the protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import a2a.server.routes  # noqa: F401 - first: the next imports it in a circle  # pyright: ignore[reportUnusedImport]
from a2a.server.request_handlers import RequestHandler
from a2a.server.routes import ServerCallContextBuilder, create_rest_routes
from a2a.utils.error_handlers import build_rest_error_payload
from a2a.utils.errors import (
    A2AError,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router

from retinue_server.http.body import StrictRequest

if TYPE_CHECKING:
    pass


def rest_router(handler: RequestHandler, builder: ServerCallContextBuilder, grace: float) -> Router:
    """The SDK's REST routes, plain and below a tenant's name, without its routers' redirects to paths with a slash."""
    made = create_rest_routes(handler, builder, shutdown_grace_period=grace)
    routes = [_strict(route) for route in made if isinstance(route, Route)]
    tenants = Mount("/{tenant}", Router(routes, redirect_slashes=False))
    return Router([*routes, tenants], redirect_slashes=False)


def rest_error(error: A2AError) -> Response:
    payload = build_rest_error_payload(error)
    return JSONResponse(payload, payload["error"]["code"])


def _strict(route: Route) -> Route:
    endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint

    async def strictly(request: Request) -> Response:
        strict = StrictRequest(request.scope, request.receive)
        if request.method == "POST":
            try:
                if await strict.body():
                    await strict.json()
            except A2AError as error:
                return rest_error(error)
        answer = await endpoint(strict)
        if answer.status_code == 429:
            answer.headers["Retry-After"] = _retry_after(answer)
        return answer

    return Route(route.path, strictly, methods=list(route.methods or ()))


def _retry_after(answer: Response) -> str:
    """Seconds, in whole, that a refusal made by the SDK asks to wait for."""
    details = json.loads(bytes(answer.body))["error"]["details"]
    return str(math.ceil(float(details[0]["metadata"].get("retryAfterSeconds", 1))))
