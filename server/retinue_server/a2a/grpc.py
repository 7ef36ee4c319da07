"""The gRPC binding: the SDK's servicer with our identity and with the version gate it leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import a2a.server.routes  # noqa: F401 - first: the next imports it in a circle  # pyright: ignore[reportUnusedImport]
from a2a.server.request_handlers import RequestHandler
from a2a.utils.constants import VERSION_HEADER

from retinue_server.config import ServerConfig

from .errors import TooManyRequestsError

if TYPE_CHECKING:
    import grpc.aio


import grpc
import grpc.aio
from a2a.extensions.common import HTTP_EXTENSION_HEADER, get_requested_extensions
from a2a.server.context import ServerCallContext
from a2a.server.request_handlers import GrpcHandler
from a2a.server.request_handlers.grpc_handler import (
    _ERROR_CODE_MAP,  # pyright: ignore[reportPrivateUsage]
    GrpcServerCallContextBuilder,
)
from a2a.types.a2a_pb2_grpc import (
    add_A2AServiceServicer_to_server,  # pyright: ignore[reportUnknownVariableType]
)

from retinue_server.auth.principals import LOOPBACK
from retinue_server.http.body import LONGEST_BODY

from .validation import check_version

_ERROR_CODE_MAP[TooManyRequestsError] = grpc.StatusCode.RESOURCE_EXHAUSTED


async def serve(handler: RequestHandler, config: ServerConfig) -> grpc.aio.Server:
    """Start a gRPC server for the handler at `grpc_port`. Raises RuntimeError if the port is in use."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", LONGEST_BODY), ("grpc.so_reuseport", 0)])
    add_A2AServiceServicer_to_server(GrpcHandler(handler, _Builder()), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"{config.host}:{config.grpc_port}")
    await server.start()
    return server


class _Builder(GrpcServerCallContextBuilder):
    def build(self, context: grpc.aio.ServicerContext[Any, Any]) -> ServerCallContext:
        metadata = [
            (key.lower(), value if isinstance(value, str) else value.decode("utf-8", "replace"))
            for key, value in context.invocation_metadata() or ()
        ]
        versions = [value for key, value in metadata if key == VERSION_HEADER.lower()]
        check_version(versions[-1] if versions else None)
        extensions = [value for key, value in metadata if key == HTTP_EXTENSION_HEADER.lower()]
        return ServerCallContext(user=LOOPBACK, requested_extensions=get_requested_extensions(extensions))
