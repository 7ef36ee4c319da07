"""The bindings of one handler: JSON-RPC (1.0 and 0.3), REST and gRPC. They refuse what is not the protocol."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import a2a.server.routes  # noqa: F401 - first: the next imports it in a circle  # pyright: ignore[reportUnusedImport]
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
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from retinue_server.a2a.validation import check_version
from retinue_server.http.body import StrictRequest

from .errors import TooManyRequestsError
from .json_codec import encode, send_request, send_response

if TYPE_CHECKING:
    pass


class Dispatcher(JsonRpcDispatcher):
    """The SDK's dispatcher behind a strict parser, with a short way for the one call that nearly all calls are.

    It is an ASGI application for POST.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self.handle_requests(StrictRequest(scope, receive))
        await answer(scope, receive, send)

    async def handle_requests(self, request: Request) -> Response:
        strict = request if isinstance(request, StrictRequest) else StrictRequest(request.scope, request.receive)
        try:
            body = await strict.json()
        except A2AError as error:
            return JSONResponse(build_error_response(None, error))
        if (
            isinstance(body, dict)
            and body.get("method") == "SendMessage"  # pyright: ignore[reportUnknownMemberType]
            and body.get("jsonrpc") == "2.0"  # pyright: ignore[reportUnknownMemberType]
            and type(body.get("id")) in (str, int)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        ):
            return await self._send(strict, cast("dict[str, Any]", body))
        response: Response = await super().handle_requests(strict)
        return response

    def _generate_error_response(self, request_id: str | int | None, error: Any) -> JSONResponse:
        made: JSONResponse = super()._generate_error_response(request_id, error)
        return _throttled(made, error) if isinstance(error, TooManyRequestsError) else made

    async def _send(self, request: Request, body: dict[str, Any]) -> Response:
        request_id: str | int = body["id"]
        given = body.get("params", {})
        try:
            params = send_request(given) or ParseDict(given, SendMessageRequest(), ignore_unknown_fields=True)
        except (ParseError, AttributeError, TypeError, ValueError) as error:
            return JSONResponse(build_error_response(request_id, InvalidParamsError(f"params: {error}")))
        context = self._context_builder.build(request)
        context.tenant = params.tenant
        try:
            check_version(request.headers.get(VERSION_HEADER))
            answer = await self.request_handler.on_message_send(params, context)
        except A2AError as error:
            return _refusal(request_id, error)
        return _Answer(encode({"jsonrpc": "2.0", "id": request_id, "result": send_response(answer)}).encode())


class _Answer(Response):
    """JSON that is written already, under the head that all such answers have."""

    def __init__(self, content: bytes) -> None:
        self.status_code = 200
        self.body = content
        self.background = None
        self.raw_headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]


class _OldAdapter(JSONRPC03Adapter):
    """The SDK's 0.3, which tells a limit as an internal error."""

    def _generate_error_response(self, request_id: str | int | None, error: Any) -> JSONResponse:
        if not isinstance(error, TooManyRequestsError | ExtendedAgentCardNotConfiguredError):
            made: JSONResponse = super()._generate_error_response(request_id, error)
            return made
        told = {"code": JSON_RPC_ERROR_CODE_MAP[type(error)], "message": error.message}
        answer = JSONResponse({"jsonrpc": "2.0", "id": request_id, "error": told})
        return _throttled(answer, error) if isinstance(error, TooManyRequestsError) else answer


def _refusal(request_id: str | int, error: A2AError) -> Response:
    answer = JSONResponse(build_error_response(request_id, error))
    return _throttled(answer, error) if isinstance(error, TooManyRequestsError) else answer


def _throttled(answer: JSONResponse, error: TooManyRequestsError) -> JSONResponse:
    answer.status_code = 429
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(math.ceil(error.retry_after))
    return answer


def jsonrpc(handler: RequestHandler, builder: ServerCallContextBuilder, grace: float) -> Dispatcher:
    """JSON-RPC, 1.0 and 0.3; streams may go on for `grace` seconds when the server stops."""
    dispatcher = Dispatcher(handler, builder, enable_v0_3_compat=True, shutdown_grace_period=grace)
    dispatcher._v03_adapter = _OldAdapter(handler, builder, grace)  # pyright: ignore[reportPrivateUsage]
    return dispatcher
