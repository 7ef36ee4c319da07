"""The gRPC port: the server of `server.grpc_port`, or none."""

from __future__ import annotations

from typing import Protocol

from a2a.server.request_handlers import RequestHandler

from retinue_server.auth.call_context import CallContextBuilder
from retinue_server.config import ServerConfig


class GrpcPort(Protocol):
    async def start(self) -> None: ...

    async def stop(self, grace: float) -> None:
        """`grace`: for how many seconds calls may go on."""


class NoGrpc:
    """No gRPC port is configured."""

    async def start(self) -> None:
        pass

    async def stop(self, grace: float) -> None:
        pass


def grpc_port(handler: RequestHandler, builder: CallContextBuilder, config: ServerConfig) -> GrpcPort:
    if config.grpc_port is None:
        return NoGrpc()
    from .grpc import GrpcServer  # needs the extra `grpc`

    return GrpcServer(handler, builder, host=config.host, port=config.grpc_port)
