"""`retinue serve`: bind the address, fetch the weights, build the app and run uvicorn, in an order that fails early."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib.util
import ipaddress
import logging
import math
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from retinue_memory.background import DaemonThreads
from retinue_memory.errors import ConfigError, RetinueError
from retinue_memory.weights import (
    MINILM,
    SMOLLM2,
    VOCAB,
    Weight,
    locate,
)

from .config import Config
from .http.connection import Connection

log = logging.getLogger(__name__)

_CONNECTIONS_CLOSE_S = 2
"""How much longer than for streams a stop waits for their connections."""
_GC_THRESHOLDS = 20_000, 20, 50
"""A turn creates a few hundred objects and hardly a cycle: rare collections save 5 % of its CPU time."""
_MAX_BACKLOG = 2048


class AddressError(RetinueError):
    """The address cannot be listened on: choose another port with --port, or stop what uses it."""


def serve(config: Config) -> None:
    """Serve until a signal comes. Blocks.

    Raises InvalidConfig if the configuration names what does not exist, AddressError, StoreError, and ConfigError if the
    weights of its model are neither found nor fetched.
    """
    from .app import create_app
    from .assembly import Assembly

    registry = Assembly(config)
    listener = _bind(config)
    with listener:
        registry.open()
        _fetch(_weights(config))
        app = create_app(registry=registry)
        _listen(listener, config)
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        if not ipaddress.ip_address(host).is_loopback:
            log.warning("auth mode is none: whoever reaches %s can act for every user", url)
        server = _Server(
            app,
            uvicorn.Config(
                app,
                http=Connection,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # no header is trusted: behind a proxy, say public_url
                timeout_graceful_shutdown=math.ceil(config.server.grace) + _CONNECTIONS_CLOSE_S,
            ),
            f"Retinue serves {', '.join(config.agents)} at {url} (Ctrl+C to stop)",
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a requested stop is no failure: exit 0
        with suppress(KeyboardInterrupt):  # uvicorn raises it again once everything is closed
            server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, app: Starlette, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._app = app
        self._ready = ready
        self._hurries = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(DaemonThreads())
        await super().startup(sockets=sockets)
        gc.freeze()  # what is loaded now is never garbage
        gc.set_threshold(*_GC_THRESHOLDS)
        print(self._ready, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the grace period at the second Ctrl+C, and stop in order all the same; end the process at the third."""
        if self.should_exit and sig == signal.SIGINT and not self._hurries:
            self._hurries = True
            self._loop.call_soon_threadsafe(self._app.state.hurry)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop turns and connections at the same time, so that who waits for a turn that is cut off is told."""
        stopping = asyncio.create_task(self._app.state.stop())
        await super().shutdown(sockets=sockets)
        if not self.force_exit:  # by a third Ctrl+C
            await stopping


def _bind(config: Config) -> socket.socket:
    """Bind the server's address, before anything slow. Nobody can connect before it listens."""
    host, port = config.server.host, config.server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressError(f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        if os.name == "posix":  # on Windows the option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _explain(error, config) from error
    return listener


def _listen(listener: socket.socket, config: Config) -> None:
    try:
        listener.listen(_MAX_BACKLOG)
    except OSError as error:  # another server took it meanwhile
        raise _explain(error, config) from error


def _explain(error: OSError, config: Config) -> AddressError:
    in_use = "is in use: stop what uses it, or choose another with --port"
    reason = in_use if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror}"
    return AddressError(f"port {config.server.port} on {config.server.host} {reason}")


def _weights(config: Config) -> list[Weight]:
    """The weights that the configuration's models and memories load."""
    agents = [agent for agent in config.agents.values() if agent.model is not None]
    wanted = [SMOLLM2] if any(str(agent.model).startswith("local/") for agent in agents) else []
    used = {memory for name in config.agents for memory in config.memories_of(name)}
    entries = [config.memory[name].entry for name in used]
    if any(_embeds(entry) for entry in entries) and all(
        importlib.util.find_spec(name) for name in ("onnxruntime", "tokenizers")
    ):
        wanted += [MINILM, VOCAB]
    return wanted


def _embeds(entry: Mapping[str, Any]) -> bool:
    """Whether a memory uses the built-in embedder."""
    backend = entry["backend"]
    return bool(backend == "mem0-local" or (backend == "native" and entry.get("embedder", "minilm") == "minilm"))


def _fetch(weights: list[Weight]) -> None:
    if not weights:
        return
    from retinue_agents.models.weights import ensure

    try:
        ensure(weights)
    except ConfigError as error:
        if SMOLLM2 in weights and locate(SMOLLM2) is None:
            raise
        log.warning(
            "memories are found by words alone, those of mem0-local not at all: %s", error
        )  # the chat model is here, so serve without embedder
