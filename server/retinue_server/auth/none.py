"""Who is asking, and for whom."""

from __future__ import annotations

from a2a.extensions.common import HTTP_EXTENSION_HEADER, get_requested_extensions
from a2a.server.context import ServerCallContext
from a2a.server.routes import ServerCallContextBuilder
from a2a.utils.constants import VERSION_HEADER
from starlette.requests import Request

from retinue_server.auth.principals import LOOPBACK


class NoAuth(ServerCallContextBuilder):
    """The identity of `auth: {mode: none}`: every caller is the loopback principal."""

    def build(self, request: Request) -> ServerCallContext:
        headers = request.headers
        version = headers.get(VERSION_HEADER)
        return ServerCallContext(
            user=LOOPBACK,
            state={"headers": {VERSION_HEADER: version} if version else {}},  # all that the SDK asks for
            requested_extensions=get_requested_extensions(headers.getlist(HTTP_EXTENSION_HEADER)),
        )
