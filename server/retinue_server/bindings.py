"""The bindings of one handler: JSON-RPC (1.0 and 0.3), REST and gRPC. They refuse what is not the protocol."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, cast

import a2a.server.routes  # noqa: F401 - first: the next imports it in a circle  # pyright: ignore[reportUnusedImport]
from a2a.compat.v0_3.jsonrpc_adapter import JSONRPC03Adapter
from a2a.server.request_handlers import RequestHandler
from a2a.server.request_handlers.response_helpers import build_error_response
from a2a.server.routes import ServerCallContextBuilder, create_rest_routes
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types import SendMessageRequest
from a2a.utils.constants import PROTOCOL_VERSION_1_0, VERSION_HEADER
from a2a.utils.error_handlers import build_rest_error_payload
from a2a.utils.errors import (
    JSON_RPC_ERROR_CODE_MAP,
    A2AError,
    ContentTypeNotSupportedError,
    ExtendedAgentCardNotConfiguredError,
    InvalidParamsError,
    InvalidRequestError,
    JSONParseError,
    VersionNotSupportedError,
)
from google.protobuf.json_format import ParseDict, ParseError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from .config import ServerConfig
from .errors import TooManyRequestsError
from .values import DEEPEST
from .wire import encode, send_request, send_response

if TYPE_CHECKING:
    import grpc.aio

LONGEST_BODY = 10 * 2**20
"""Bytes of a request's body; a longer one is refused before it is read."""
_DEEPEST = DEEPEST + 8
"""How deep lists and objects of a body may stand in each other: what a message may hold, and the call around it."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MEDIA_TYPES = ("application/json", "application/a2a+json")


class StrictRequest(Request):
    """A request whose body is JSON as RFC 8259 has it: UTF-8, no NaN, no key twice, and not longer than allowed."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._check_headers()
            chunks: list[bytes] = []
            size, more = 0, True
            while more:  # what `stream` does, without a generator
                received = await self.receive()
                if received["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk, more = received.get("body", b""), received.get("more_body", False)
                size += len(chunk)
                if size > LONGEST_BODY:
                    raise InvalidRequestError(f"the body is longer than {LONGEST_BODY} bytes")
                chunks.append(chunk)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = loads(await self.body())
        return self._json

    def _check_headers(self) -> None:
        given = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given and given not in _MEDIA_TYPES:
            raise ContentTypeNotSupportedError(f"Content-Type {given}: send application/json")
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > LONGEST_BODY:
            raise InvalidRequestError(f"the body is longer than {LONGEST_BODY} bytes")


def loads(body: bytes) -> Any:
    """The JSON value of a body. Raises JSONParseError, which says what is wrong with it."""
    try:
        value = _decode(body.decode())
        _check_depth(body, value)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()  # refuses halves of pairs, wherever they are
        return value
    except UnicodeEncodeError as error:
        raise JSONParseError("the JSON holds half a character: a surrogate without its other half") from error
    except RecursionError as error:
        raise JSONParseError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise JSONParseError(f"the body is not JSON: {error}") from error


def _check_depth(body: bytes, value: Any) -> None:
    """Raise RecursionError for a value that is deeper than what parses it further on may go."""
    if body.count(b"[") + body.count(b"{") <= _DEEPEST:
        return
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)  # pyright: ignore[reportUnknownVariableType]
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise RecursionError


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


_decode = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_repeats).decode


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


def check_version(given: str | None) -> None:
    """Raise VersionNotSupportedError unless a request speaks version 1 of the protocol; without a word, it speaks 0.3."""
    if (given or "0.3").partition(".")[0] != PROTOCOL_VERSION_1_0.partition(".")[0]:
        raise VersionNotSupportedError(f"A2A version {given or '0.3'} is not supported here: send A2A-Version: 1.0")


def jsonrpc(handler: RequestHandler, builder: ServerCallContextBuilder, grace: float) -> Dispatcher:
    """JSON-RPC, 1.0 and 0.3; streams may go on for `grace` seconds when the server stops."""
    dispatcher = Dispatcher(handler, builder, enable_v0_3_compat=True, shutdown_grace_period=grace)
    dispatcher._v03_adapter = _OldAdapter(handler, builder, grace)  # pyright: ignore[reportPrivateUsage]
    return dispatcher


class Shortcut:
    """Has calls of JSON-RPC found by their path alone, before `app` with its routes is asked."""

    def __init__(self, app: ASGIApp, posts: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST" and not scope["root_path"]:
            app = self._posts.get(scope["path"], app)
        await app(scope, receive, send)


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


class NoServer:
    """gRPC where none is configured."""

    async def stop(self, grace: float | None) -> None:
        pass


async def serve_grpc(handler: RequestHandler, config: ServerConfig) -> grpc.aio.Server | NoServer:
    """Serve a handler over gRPC as `grpc_port` says; to be stopped. Needs the extra `grpc`, and is not imported without."""
    if config.grpc_port is None:
        return NoServer()
    from .grpc import serve

    return await serve(handler, config)
