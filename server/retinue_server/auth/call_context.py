"""CallContextBuilder: the one step from a request's headers to its principal, for JSON-RPC, REST and gRPC."""

from __future__ import annotations

from a2a.extensions.common import HTTP_EXTENSION_HEADER, get_requested_extensions
from a2a.server.context import ServerCallContext
from a2a.server.routes import ServerCallContextBuilder
from a2a.utils.constants import VERSION_HEADER
from starlette.datastructures import Headers
from starlette.requests import Request

from .none import NoAuth


class CallContextBuilder(ServerCallContextBuilder):
    """Authenticates a request, and builds the context that the SDK's bindings pass to the handler."""

    def __init__(self, auth: NoAuth) -> None:
        self._auth = auth

    def build(self, request: Request) -> ServerCallContext:
        context = self.from_headers(request.headers)
        request.state.call_context = context  # for the binding, when the SDK has made the response
        return context

    def from_headers(self, headers: Headers) -> ServerCallContext:
        """Build the context of a call with these HTTP headers, or this gRPC metadata."""
        version = headers.get(VERSION_HEADER)
        return ServerCallContext(
            user=self._auth.authenticate(headers),
            state={"headers": {VERSION_HEADER: version} if version else {}},  # the only one that the SDK reads
            requested_extensions=get_requested_extensions(headers.getlist(HTTP_EXTENSION_HEADER)),
        )
