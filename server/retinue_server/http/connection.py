"""One HTTP connection: uvicorn's protocol, which writes the head of an answer and its body in one go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as HttpProtocol
else:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol as HttpProtocol

_INTERIM = b"HTTP/1.1 100 "
"""What a client waits for before it sends its body."""


class Connection(HttpProtocol):
    """The protocol that uvicorn chooses: on httptools, or on h11 where that is not installed.

    uvicorn hands an answer's head and its body to the system one after the other, which costs the server a second call and
    has the client wake up twice.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", BufferedHead(transport)))


class BufferedHead:
    """A transport that keeps the head of an answer until the first of its body is written, as ASGI has it anyway."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.endswith(b"\r\n\r\n") and data.startswith(b"HTTP/") and not data.startswith(_INTERIM):
            self._head = data
            return
        self._transport.write(data)

    def close(self) -> None:
        if self._head:
            self.write(b"")
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
