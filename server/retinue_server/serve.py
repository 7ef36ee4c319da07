"""`retinue serve`: bind the address, open the database, fetch weights, run uvicorn; what fails, fails early."""

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
from contextlib import suppress
from types import FrameType

import uvicorn

from retinue_memory.background import DaemonThreads
from retinue_memory.errors import ConfigError, RetinueError
from retinue_memory.weights import MINILM, SMOLLM2, VOCAB, Weight, locate

from .assembly import Server, build
from .config import Config

logger = logging.getLogger(__name__)

_CONNECTIONS_TIMEOUT_S = 2  # beyond the grace
_GC_THRESHOLDS = 20_000, 20, 50  # a turn creates few cycles: collecting seldom saves a twentieth of its CPU time
_BACKLOG = 2048


class AddressError(RetinueError):
    """The server cannot listen on its address: choose another port with --port, or stop what uses it."""


def serve(config: Config) -> None:
    """Serve until a signal arrives. Blocks.

    Raises InvalidConfig if the configuration names something that does not exist, AddressError for its address, StoreError
    for its database, and ConfigError if the weights of its model can be neither found nor fetched.
    """
    server = build(config)
    listener = _bind(config)
    with listener:
        server.open()
        _fetch(_weights(config))
        _listen(listener, config)
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        if not ipaddress.ip_address(host).is_loopback:
            logger.warning("auth mode is none: whoever can reach %s may act for every user", url)
        uvicorn_server = _UvicornServer(server, f"Retinue serves {', '.join(config.agents)} at {url} (Ctrl+C to stop)")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a requested stop is no failure: exit code 0
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has closed everything
            uvicorn_server.run(sockets=[listener])


class _UvicornServer(uvicorn.Server):
    """Runs a server's `app`, and drains the server while connections are still open."""

    def __init__(self, server: Server, ready: str) -> None:
        self._server = server
        self._grace = server.config.server.grace
        self._ready = ready
        self._hurrying = False
        super().__init__(
            uvicorn.Config(
                server.app,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # no header is trusted: behind a proxy, set public_url
                timeout_graceful_shutdown=math.ceil(self._grace) + _CONNECTIONS_TIMEOUT_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(DaemonThreads())
        await super().startup(sockets=sockets)
        gc.freeze()  # what is loaded now is never garbage
        gc.set_threshold(*_GC_THRESHOLDS)
        print(self._ready, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second Ctrl+C ends the grace, and the stop goes on in order; a third one ends the process."""
        if self.should_exit and sig == signal.SIGINT and not self._hurrying:
            self._hurrying = True
            self._loop.call_soon_threadsafe(self._server.hurry)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while connections are open: a caller whose turn does not end in time still gets an answer."""
        draining = asyncio.create_task(self._server.drain(self._grace))
        await super().shutdown(sockets=sockets)
        if not self.force_exit:  # by a third Ctrl+C
            await draining


def _bind(config: Config) -> socket.socket:
    """Reserve the address before anything slow; nobody can connect yet."""
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
        raise _address_error(error, config) from error
    return listener


def _listen(listener: socket.socket, config: Config) -> None:
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # another server took the port in the meantime
        raise _address_error(error, config) from error


def _address_error(error: OSError, config: Config) -> AddressError:
    in_use = "is in use: stop what uses it, or choose another with --port"
    reason = in_use if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror}"
    return AddressError(f"port {config.server.port} on {config.server.host} {reason}")


def _weights(config: Config) -> list[Weight]:
    """The weights that the configuration's models and memories will load."""
    models = [agent.model for agent in config.agents.values() if agent.model is not None]
    weights = [SMOLLM2] if any(model.startswith("local/") for model in models) else []
    memories = {memory for name in config.agents for memory in config.memories_of(name)}
    if any(config.memory[name].settings.uses_embedder for name in memories) and all(
        importlib.util.find_spec(name) for name in ("onnxruntime", "tokenizers")
    ):
        weights += [MINILM, VOCAB]
    return weights


def _fetch(weights: list[Weight]) -> None:
    if not weights:
        return
    from retinue_agents.models.weights import ensure

    try:
        ensure(weights)
    except ConfigError as error:
        if SMOLLM2 in weights and locate(SMOLLM2) is None:
            raise
        logger.warning("memories are found by words alone, and those of mem0-local not at all: %s", error)
