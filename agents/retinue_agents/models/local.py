"""The embedded model: SmolLM2-135M-Instruct in this process, through xllamacpp. No key, no server, no network.

It is loaded at first use, once per process, off the event loop. One generation runs at a time; others are queued. The same
conversation always gets the same answer. It cannot call tools.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import os
import secrets
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from retinue_memory import (
    ChatModel,
    Message,
    ModelDelta,
    ToolSpec,
    Usage,
)
from retinue_memory.errors import ConfigError, ModelError
from retinue_memory.weights import SMOLLM2, locate

from . import smollm2

log = logging.getLogger(__name__)

KNOWN = {"smollm2-135m": SMOLLM2}

_MAX_PROMPT_TOKENS = 768  # 2-4 s on two cores; a longer prompt is cut
_MAX_ANSWER_TOKENS = 512
_CHARACTERS_PER_TOKEN = 3.5  # English has 4 to 4.5; a prompt with fewer is cut again by the runtime's own count
_BATCH_TOKENS = 128  # between two checks for cancellation while the prompt is read: about half a second
_MAX_SOCKET_PATH_BYTES = 100


class LocalChat(ChatModel):
    """A model that runs in this process. `max_tokens` limits the answer. Raises ConfigError if the name is unknown."""

    calls_tools = False

    def __init__(self, model: str = "smollm2-135m", *, max_tokens: int = 256) -> None:
        if model not in KNOWN:
            known = ", ".join(f"local/{name}" for name in sorted(KNOWN))
            raise ConfigError(f"there is no local model {model!r}; known: {known}", key="model", value=f"local/{model}")
        if not 1 <= max_tokens <= _MAX_ANSWER_TOKENS:
            raise ConfigError(
                f"expected from 1 to {_MAX_ANSWER_TOKENS}, got {max_tokens}", key="max_tokens", value=max_tokens
            )
        self.name = f"local/{model}"
        self._max_tokens = max_tokens

    async def load(self) -> None:
        """Load the model now, in its thread, instead of at the first request. Raises ModelError."""
        await asyncio.wrap_future(_thread().submit(_runtime))

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        prompt = smollm2.shape(messages)
        if schema is not None:
            prompt = smollm2.Prompt("plain", prompt.lines)
        max_characters = int(_MAX_PROMPT_TOKENS * _CHARACTERS_PER_TOKEN)
        for _ in range(5):
            try:
                async for delta in self._generate(smollm2.fit(prompt, max_characters), schema, settings):
                    yield delta
                return
            except _TooLongError as error:
                max_characters = int(max_characters * _MAX_PROMPT_TOKENS / error.tokens * 0.95)
        raise ModelError(f"{self.name}: the message does not fit the model's context window")

    async def _generate(
        self, prompt: smollm2.Prompt, schema: Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> AsyncIterator[ModelDelta]:
        lines = [*prompt.lines, ("assistant", prompt.prefill)] if prompt.prefill else prompt.lines
        body: dict[str, Any] = {
            "messages": [{"role": role, "content": text} for role, text in lines],
            "max_tokens": min(settings.get("max_tokens", self._max_tokens), _MAX_ANSWER_TOKENS),
            "temperature": 0,
            "seed": 1,
            "dry_multiplier": 0.8,  # stops a small model's endless loops; short quotes stay possible
            "dry_allowed_length": 12,
            "cache_prompt": False,  # a cached prefix changes the rounding, and so the answer
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
        }
        if schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
        started = False
        finish = "stop"
        async with aclosing(_chunks(body)) as chunks:
            async for chunk in chunks:
                if error := chunk.get("error"):
                    if error.get("type") == "exceed_context_size_error":
                        raise _TooLongError(int(error["n_prompt_tokens"]))
                    raise ModelError(f"{self.name}: {error.get('message', error)}")
                if (progress := chunk.get("prompt_progress")) and progress["total"] > _MAX_PROMPT_TOKENS:
                    raise _TooLongError(int(progress["total"]))
                for choice in chunk.get("choices", ()):
                    finish = choice.get("finish_reason") or finish
                    if text := choice.get("delta", {}).get("content"):
                        if not started:
                            text = prompt.prefill + text if prompt.prefill else text.lstrip()
                            started = bool(text)
                        if text:
                            yield ModelDelta(text)
                if usage := chunk.get("usage"):
                    yield ModelDelta(usage=Usage(usage["prompt_tokens"], usage["completion_tokens"]), finish=finish)


class _TooLongError(Exception):
    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


async def _chunks(body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Stream a completion from the model's thread to this event loop. Closing the generator stops the generation."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    stopped = threading.Event()

    def put(chunk: dict[str, Any] | None) -> bool:
        """Called by the runtime in its thread. Returns True to stop the generation."""
        if stopped.is_set():
            return True
        try:
            loop.call_soon_threadsafe(queue.put_nowait, chunk)
        except RuntimeError:  # the event loop has been closed
            return True
        return False

    def generate() -> None:
        runtime = _runtime()
        if stopped.is_set():
            return
        try:
            runtime.handle_chat_completions(body, put)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the embedded model refused the request: {error}") from error

    running = _thread().submit(generate)
    running.add_done_callback(lambda _: put(None))
    try:
        while (chunk := await queue.get()) is not None:
            yield chunk
        running.result()
    finally:
        stopped.set()
        running.cancel()


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """The one thread that loads the model and generates, with its queue of requests."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-model")


@functools.cache
def _runtime() -> Any:
    """Load the model into xllamacpp's server object, in 0.2-0.4 s. Called by the model's thread only."""
    path = locate(SMOLLM2)
    if path is None:
        raise ModelError(
            "the weights of local/smollm2-135m are missing: fetch them with `python -m retinue_agents.models.weights`"
        )
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or its threads spin; must be set before the import
    try:
        runtime: Any = importlib.import_module("xllamacpp")  # it has no type hints
    except ImportError as error:
        raise ModelError(f"xllamacpp cannot be loaded ({error}): install retinue[local]") from error
    params = runtime.CommonParams()
    params.model.path = str(path)
    params.n_ctx = _MAX_PROMPT_TOKENS + _MAX_ANSWER_TOKENS
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = 1  # a second thread makes so small a model slower
    params.cpuparams_batch.n_threads = min(2, os.cpu_count() or 1)
    params.warmup = False
    params.verbosity = -1
    params.fit_params = False
    try:
        return _without_endpoint(runtime.Server, params)
    except RuntimeError as error:
        raise ModelError(f"the embedded model cannot be loaded from {path}: {error}") from error


def _without_endpoint(create: Callable[[Any], Any], params: Any) -> Any:
    """Create the server object, with the HTTP endpoint that it always opens closed to connections.

    The endpoint is a Unix socket in a private folder that is removed at once. If there are no Unix sockets (Windows), or
    the path of the temporary folder is too long for one, it is a port on 127.0.0.1 that requires a random key.
    """
    params.api_keys = [secrets.token_urlsafe(32)]
    params.n_threads_http = 1
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    with tempfile.TemporaryDirectory(prefix="retinue-", ignore_cleanup_errors=True) as folder:
        socket = os.path.join(folder, "s.sock")
        if os.name == "posix" and len(socket) <= _MAX_SOCKET_PATH_BYTES:
            params.hostnames = [socket]
            try:
                return create(params)
            except RuntimeError:
                log.info("cannot open a Unix socket at %s; using a port on 127.0.0.1 with a random key", socket)
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        return create(params)
