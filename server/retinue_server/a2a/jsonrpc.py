"""The JSON-RPC binding: A2A 1.0 and 0.3 on one address, over the SDK's dispatcher."""

from __future__ import annotations

import math
from typing import Any

import a2a.server.routes  # noqa: F401 - before a2a.compat, with which it forms an import circle  # pyright: ignore[reportUnusedImport]
from a2a.compat.v0_3.jsonrpc_adapter import JSONRPC03Adapter
from a2a.server.request_handlers import RequestHandler
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.server.routes import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types import SendMessageRequest
from a2a.utils.constants import VERSION_HEADER
from a2a.utils.errors import (
    JSON_RPC_ERROR_CODE_MAP,
    A2AError,
    ExtendedAgentCardNotConfiguredError,
    InvalidParamsError,
)
from google.protobuf.json_format import ParseDict, ParseError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from retinue_server.http.body import StrictRequest

from .errors import TooManyRequestsError
from .json_codec import send_request, send_response
from .sse import with_event_ids
from .validation import check_version


class JsonRpcApp(JsonRpcDispatcher):
    """An ASGI application for POST. It answers SendMessage itself, and leaves the other methods to the SDK.

    Streams may go on for `grace` seconds when the server stops.
    """

    def __init__(self, handler: RequestHandler, builder: ServerCallContextBuilder, grace: float) -> None:
        super().__init__(handler, builder, enable_v0_3_compat=True, shutdown_grace_period=grace)
        self._v03_adapter = _Adapter03(handler, builder, grace)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self.handle_requests(StrictRequest(scope, receive))
        await response(scope, receive, send)

    async def handle_requests(self, request: Request) -> Response:
        try:
            body = await request.json()
        except A2AError as error:
            return _error_response(None, error)
        match body:
            case {"jsonrpc": "2.0", "method": "SendMessage", "id": str() | int() as id_} if not isinstance(id_, bool):
                return await self._send_message(request, id_, body.get("params", {}))
            case _:
                return with_event_ids(await super().handle_requests(request), request)

    async def _send_message(self, request: Request, request_id: str | int, given: Any) -> Response:
        try:
            params = send_request(given) or ParseDict(given, SendMessageRequest(), ignore_unknown_fields=True)
        except (ParseError, AttributeError, TypeError, ValueError) as error:
            return _error_response(request_id, InvalidParamsError(f"params: {error}"))
        context = self._context_builder.build(request)
        context.tenant = params.tenant
        try:
            check_version(context.state["headers"].get(VERSION_HEADER))
            answer = await self.request_handler.on_message_send(params, context)
        except A2AError as error:
            return _error_response(request_id, error)
        content = to_json({"jsonrpc": "2.0", "id": request_id, "result": send_response(answer)})
        return Response(content, media_type="application/json")

    def _generate_error_response(self, request_id: str | int | None, error: Any) -> JSONResponse:
        response: JSONResponse = super()._generate_error_response(request_id, error)
        return _with_retry_after(response, error)


class _Adapter03(JSONRPC03Adapter):
    """The SDK's adapter for 0.3, which sends errors that are not in its own table as internal ones."""

    def _generate_error_response(self, request_id: str | int | None, error: Any) -> JSONResponse:
        if not isinstance(error, TooManyRequestsError | ExtendedAgentCardNotConfiguredError):
            response: JSONResponse = super()._generate_error_response(request_id, error)
            return response
        content = {"code": JSON_RPC_ERROR_CODE_MAP[type(error)], "message": error.message}
        return _with_retry_after(JSONResponse({"jsonrpc": "2.0", "id": request_id, "error": content}), error)


def _error_response(request_id: str | int | None, error: A2AError) -> JSONResponse:
    return _with_retry_after(JSONResponse(build_error_response(request_id, error)), error)


def _with_retry_after(response: JSONResponse, error: object) -> JSONResponse:
    """Give the response to a TooManyRequestsError its HTTP status and header."""
    if isinstance(error, TooManyRequestsError):
        response.status_code = 429
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    return response
