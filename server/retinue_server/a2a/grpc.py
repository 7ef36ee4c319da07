"""The gRPC binding: the SDK's servicer with our authentication, and with the version check that it lacks.

grpcio is an extra: import this module only if a gRPC port is configured.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers import GrpcHandler, RequestHandler
from a2a.server.request_handlers.grpc_handler import (
    _ERROR_CODE_MAP,  # pyright: ignore[reportPrivateUsage]
    GrpcServerCallContextBuilder,
)
from a2a.types.a2a_pb2_grpc import add_A2AServiceServicer_to_server  # pyright: ignore[reportUnknownVariableType]
from a2a.utils.constants import VERSION_HEADER
from starlette.datastructures import Headers

from retinue_server.auth.call_context import CallContextBuilder
from retinue_server.http.body import MAX_BODY_BYTES

from .errors import TooManyRequestsError
from .validation import check_version

_ERROR_CODE_MAP[TooManyRequestsError] = grpc.StatusCode.RESOURCE_EXHAUSTED
_OPTIONS = ("grpc.max_receive_message_length", MAX_BODY_BYTES), ("grpc.so_reuseport", 0)


class GrpcServer:
    """Serves a handler over gRPC."""

    def __init__(self, handler: RequestHandler, builder: CallContextBuilder, *, host: str, port: int) -> None:
        self._handler = handler
        self._builder = builder
        self._address = f"{host}:{port}"
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Raises RuntimeError if the port is in use."""
        server = grpc.aio.server(options=_OPTIONS)
        handler = GrpcHandler(self._handler, _GrpcCallContextBuilder(self._builder))
        add_A2AServiceServicer_to_server(handler, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(self._address)
        await server.start()
        self._server = server

    async def stop(self, grace: float) -> None:
        """Let calls go on for `grace` seconds, and accept no new ones."""
        if self._server is not None:
            await self._server.stop(grace)


class _GrpcCallContextBuilder(GrpcServerCallContextBuilder):
    """Takes a call's metadata for HTTP headers."""

    def __init__(self, builder: CallContextBuilder) -> None:
        self._builder = builder

    def build(self, context: grpc.aio.ServicerContext[Any, Any]) -> ServerCallContext:
        metadata = context.invocation_metadata() or ()
        headers = Headers(raw=[(key.lower().encode(), _bytes(value)) for key, value in metadata])
        check_version(headers.get(VERSION_HEADER))
        return self._builder.from_headers(headers)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")
