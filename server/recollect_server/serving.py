"""`recollect serve`: the address, the weights, the app and uvicorn, in an order that fails early and says why."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import logging
import socket
from contextlib import suppress

import uvicorn

from recollect_memory.errors import ConfigError, RecollectError
from recollect_memory.weights import MINILM, SMOLLM2, VOCAB, Weight, locate

from .config import Config

log = logging.getLogger(__name__)

_CONNECTIONS_MAY_END_SECONDS = 10
"""How long a stop waits for open connections."""


class AddressError(RecollectError):
    """The address cannot be listened on: choose another port with --port, or stop what uses it."""


def serve(config: Config) -> None:
    """Serve until a signal comes. Blocks.

    Raises InvalidConfig for what the configuration names and is not there, AddressError for its address, StoreError for
    its database, and ConfigError where the weights of its model can be neither found nor fetched.
    """
    from .app import create_app
    from .registry import Registry

    registry = Registry(config)
    listener = _bind(config.server.host, config.server.port)
    with listener:
        registry.open()
        _fetch(_weights(config))
        app = create_app(registry=registry)
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        if not ipaddress.ip_address(host).is_loopback:
            log.warning("auth mode is none: whoever reaches %s can act for every user", url)
        server = _Server(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_CONNECTIONS_MAY_END_SECONDS,
            )
        )
        server.ready = f"Recollect serves {', '.join(config.agents)} at {url} (Ctrl+C to stop)"
        with suppress(KeyboardInterrupt):  # uvicorn raises it anew once everything is closed
            server.run(sockets=[listener])


class _Server(uvicorn.Server):
    ready = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self.ready, flush=True)


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket: who asks for a card while the server starts waits instead of being refused."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressError(f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        in_use = "is in use: stop what uses it, or choose another with --port"
        reason = in_use if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror}"
        raise AddressError(f"port {port} on {host} {reason}") from error
    return listener


def _weights(config: Config) -> list[Weight]:
    """What the configuration's models and memories will load."""
    agents = [agent for agent in config.agents.values() if agent.model is not None]
    wanted = [SMOLLM2] if any(str(agent.model).startswith("local") for agent in agents) else []
    used = {memory for name in config.agents for memory in config.memories_of(name)}
    entries = [config.memory[name].entry for name in used]
    embeds = any(entry["backend"] == "native" and entry.get("embedder", "minilm") == "minilm" for entry in entries)
    if embeds and all(importlib.util.find_spec(name) for name in ("onnxruntime", "tokenizers")):
        wanted += [MINILM, VOCAB]
    return wanted


def _fetch(weights: list[Weight]) -> None:
    if not weights:
        return
    from recollect_agents.weights import ensure

    try:
        ensure(weights)
    except ConfigError as error:
        if SMOLLM2 in weights and locate(SMOLLM2) is None:
            raise
        log.warning("memories are found by words alone: %s", error)  # the model is here: serve with what there is
