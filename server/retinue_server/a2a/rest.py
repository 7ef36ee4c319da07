"""The REST binding: the SDK's routes behind a strict parser."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable

from a2a.server.request_handlers import RequestHandler
from a2a.server.routes import ServerCallContextBuilder, create_rest_routes
from a2a.utils.error_handlers import build_rest_error_payload
from a2a.utils.errors import A2AError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router

from retinue_server.http.body import StrictRequest

from .sse import with_event_ids


def rest_router(handler: RequestHandler, builder: ServerCallContextBuilder, grace: float) -> Router:
    """The SDK's routes, at the base and below a tenant's name, without redirects to paths that end with a slash.

    Streams may go on for `grace` seconds when the server stops.
    """
    found = create_rest_routes(handler, builder, shutdown_grace_period=grace)
    routes = [_strict(route) for route in found if isinstance(route, Route)]
    tenants = Mount("/{tenant}", Router(routes, redirect_slashes=False))
    return Router([*routes, tenants], redirect_slashes=False)


def _strict(route: Route) -> Route:
    """The route with bodies parsed by `StrictRequest`, and with Retry-After on a response of status 429."""
    endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint

    async def strict_endpoint(request: Request) -> Response:
        strict = StrictRequest(request.scope, request.receive)
        if request.method == "POST":
            try:
                if await strict.body():
                    await strict.json()
            except A2AError as error:
                payload = build_rest_error_payload(error)
                return JSONResponse(payload, payload["error"]["code"])
        response = await endpoint(strict)
        if response.status_code == 429:
            response.headers["Retry-After"] = _retry_after(response)
        return with_event_ids(response, strict)

    return Route(route.path, strict_endpoint, methods=list(route.methods or ()))


def _retry_after(response: Response) -> str:
    """Whole seconds, from the error details that the SDK wrote into the body."""
    details = json.loads(bytes(response.body))["error"]["details"]
    return str(math.ceil(float(details[0]["metadata"].get("retryAfterSeconds", 1))))
