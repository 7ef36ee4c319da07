"""`retinue serve`: the address, the weights, the app and uvicorn, in an order that fails early and says why."""

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
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import uvicorn
from starlette.applications import Starlette

from retinue_memory.errors import ConfigError, RetinueError
from retinue_memory.weights import (
    MINILM,
    SMOLLM2,
    VOCAB,
    Weight,
    locate,
)

from .config import Config

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_AFTER_STREAMS_SECONDS = 2
"""How much longer than streams a stop waits for their connections."""
_GC_THRESHOLDS = 20_000, 20, 50
"""A turn makes a few hundred objects and hardly a cycle: collecting seldom saves a twentieth of its CPU time."""
_CONNECTIONS_MAY_WAIT = 2048
"""How many the system keeps until they are accepted."""


class AddressError(RetinueError):
    """The address cannot be listened on: choose another port with --port, or stop what uses it."""


def serve(config: Config) -> None:
    """Serve until a signal comes. Blocks.

    Raises InvalidConfig for what the configuration names and is not there, AddressError for its address, StoreError for
    its database, and ConfigError where the weights of its model can be neither found nor fetched.
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
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # no header is trusted: behind a proxy, say public_url
                timeout_graceful_shutdown=math.ceil(config.server.grace) + _AFTER_STREAMS_SECONDS,
            ),
            f"Retinue serves {', '.join(config.agents)} at {url} (Ctrl+C to stop)",
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop that was asked for is no failure: exit 0
        with suppress(KeyboardInterrupt):  # uvicorn raises it anew once everything is closed
            server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, app: Starlette, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._app = app
        self._ready = ready
        self._hurries = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(_OwnThreads())
        await super().startup(sockets=sockets)
        gc.freeze()  # what is loaded by now stays
        gc.set_threshold(*_GC_THRESHOLDS)
        print(self._ready, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second Ctrl+C ends the grace at once, and all that stops in order goes on to do so; a third ends the process."""
        if self.should_exit and sig == signal.SIGINT and not self._hurries:
            self._hurries = True
            self._loop.call_soon_threadsafe(self._app.state.hurry)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The turns stop while the connections do: whoever waits for one that does not end in time is told so."""
        stopping = asyncio.create_task(self._app.state.stop())
        await super().shutdown(sockets=sockets)
        if not self.force_exit:  # by a third Ctrl+C
            await stopping


class _OwnThreads(ThreadPoolExecutor):
    """A thread for each call (of a tool that is a plain function, say): one that hangs in it holds up neither other calls
    nor the end of the process.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()

        def run() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
                done.set_exception(error)
            else:
                done.set_result(result)

        threading.Thread(target=run, name="plain-function", daemon=True).start()
        return done


def _bind(config: Config) -> socket.socket:
    """The server's address, taken before anything that takes its time; nobody can connect to it yet."""
    host, port = config.server.host, config.server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressError(f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        if os.name == "posix":  # elsewhere the option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _explain(error, config) from error
    return listener


def _listen(listener: socket.socket, config: Config) -> None:
    try:
        listener.listen(_CONNECTIONS_MAY_WAIT)
    except OSError as error:  # another server took it in the meantime
        raise _explain(error, config) from error


def _explain(error: OSError, config: Config) -> AddressError:
    in_use = "is in use: stop what uses it, or choose another with --port"
    reason = in_use if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror}"
    return AddressError(f"port {config.server.port} on {config.server.host} {reason}")


def _weights(config: Config) -> list[Weight]:
    """What the configuration's models and memories will load."""
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
        )  # the model is here: serve with what there is
