"""The embedded model: SmolLM2-135M-Instruct in this process, through xllamacpp. No key, no server, no network.

It is loaded at the first use, once a process, off the event loop; one generation runs at a time, the others wait their
turn. The same conversation always gets the same answer. It has no tool calling: tools that an agent offers it are ignored,
and the agent says so in the log.
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

_PROMPT_TOKENS = 768
"""What is read at most, 2-4 s on two cores; what is longer is cut."""
_ANSWER_TOKENS = 512
_CHARACTERS_A_TOKEN = 3.5
"""English has 4 to 4.5; where a text has fewer, the runtime says so and the prompt is cut once more."""
_BATCH_TOKENS = 128
"""Prompt tokens between two looks at whether someone still wants the answer: about half a second."""
_LONGEST_SOCKET_PATH = 100


class LocalChat(ChatModel):
    """A model that runs in this process. `max_tokens` bounds the answer. Raises ConfigError for an unknown name."""

    calls_tools = False

    def __init__(self, model: str = "smollm2-135m", *, max_tokens: int = 256) -> None:
        if model not in KNOWN:
            known = ", ".join(f"local/{name}" for name in sorted(KNOWN))
            raise ConfigError(f"there is no local model {model!r}; known: {known}", key="model", value=f"local/{model}")
        if not 1 <= max_tokens <= _ANSWER_TOKENS:
            raise ConfigError(f"from 1 to {_ANSWER_TOKENS}, not {max_tokens}", key="max_tokens", value=max_tokens)
        self.name = f"local/{model}"
        self._max_tokens = max_tokens

    async def load(self) -> None:
        """Load the model now, in its thread, rather than at the first question. Raises ModelError."""
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
            prompt = smollm2.Prompt("plain", prompt.turns)
        room = int(_PROMPT_TOKENS * _CHARACTERS_A_TOKEN)
        for _ in range(5):
            try:
                async for delta in self._generate(smollm2.fit(prompt, room), schema, settings):
                    yield delta
                return
            except _TooLongError as error:
                room = int(room * _PROMPT_TOKENS / error.tokens * 0.95)
        raise ModelError(f"{self.name}: the message is longer than the model can read")

    async def _generate(
        self, prompt: smollm2.Prompt, schema: Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> AsyncIterator[ModelDelta]:
        turns = [*prompt.turns, ("assistant", prompt.prefill)] if prompt.prefill else prompt.turns
        body: dict[str, Any] = {
            "messages": [{"role": role, "content": text} for role, text in turns],
            "max_tokens": min(settings.get("max_tokens", self._max_tokens), _ANSWER_TOKENS),
            "temperature": 0,
            "seed": 1,
            "dry_multiplier": 0.8,  # a small model repeats itself: break loops of a dozen tokens, leave quotes alone
            "dry_allowed_length": 12,
            "cache_prompt": False,  # a reused prefix changes the rounding, and so the answer
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,
        }
        if schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
        begun = False
        finish = "stop"
        async with aclosing(_chunks(body)) as chunks:
            async for chunk in chunks:
                if error := chunk.get("error"):
                    if error.get("type") == "exceed_context_size_error":
                        raise _TooLongError(int(error["n_prompt_tokens"]))
                    raise ModelError(f"{self.name}: {error.get('message', error)}")
                if (reading := chunk.get("prompt_progress")) and reading["total"] > _PROMPT_TOKENS:
                    raise _TooLongError(int(reading["total"]))
                for choice in chunk.get("choices", ()):
                    finish = choice.get("finish_reason") or finish
                    if text := choice.get("delta", {}).get("content"):
                        if not begun:
                            text = prompt.prefill + text if prompt.prefill else text.lstrip()
                            begun = bool(text)
                        if text:
                            yield ModelDelta(text)
                if usage := chunk.get("usage"):
                    yield ModelDelta(usage=Usage(usage["prompt_tokens"], usage["completion_tokens"]), finish=finish)


class _TooLongError(Exception):
    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


async def _chunks(body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """What the runtime streams, moved from its thread to this loop. Leaving early stops the generation."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    unwanted = threading.Event()

    def hand_over(chunk: dict[str, Any] | None) -> bool:
        """True stops the generation."""
        if unwanted.is_set():
            return True
        try:
            loop.call_soon_threadsafe(queue.put_nowait, chunk)
        except RuntimeError:  # the loop was closed under it
            return True
        return False

    def work() -> None:
        runtime = _runtime()
        if unwanted.is_set():
            return
        try:
            runtime.handle_chat_completions(body, hand_over)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"the embedded model refused the request: {error}") from error

    running = _thread().submit(work)
    running.add_done_callback(lambda _: hand_over(None))
    try:
        while (chunk := await queue.get()) is not None:
            yield chunk
        running.result()
    finally:
        unwanted.set()
        running.cancel()


@functools.cache
def _thread() -> ThreadPoolExecutor:
    """The one thread that loads the model and generates: its queue keeps the order of the requests."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-model")


@functools.cache
def _runtime() -> Any:
    """xllamacpp's server object with the model loaded: 0.2-0.4 s at the first call. Only the model's thread calls it."""
    path = locate(SMOLLM2)
    if path is None:
        raise ModelError(
            "the weights of local/smollm2-135m are not here: fetch them by `python -m retinue_agents.models.weights`"
        )
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or its threads spin; read when the library is loaded
    try:
        runtime: Any = importlib.import_module("xllamacpp")  # it has no types
    except ImportError as error:
        raise ModelError(f"xllamacpp cannot be loaded ({error}): install retinue[local]") from error
    params = runtime.CommonParams()
    params.model.path = str(path)
    params.n_ctx = _PROMPT_TOKENS + _ANSWER_TOKENS
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = 1  # a second one slows so small a model down
    params.cpuparams_batch.n_threads = min(2, os.cpu_count() or 1)
    params.warmup = False
    params.verbosity = -1
    params.fit_params = False
    try:
        return _unreachable(runtime.Server, params)
    except RuntimeError as error:
        raise ModelError(f"the embedded model cannot be loaded from {path}: {error}") from error


def _unreachable(make: Callable[[Any], Any], params: Any) -> Any:
    """Make the server object with its HTTP endpoint, which it always opens, where nobody can connect.

    That is a Unix socket in a private folder that is removed at once. Where there are none (Windows), or the path of the
    temporary folder is too long for one, it is a port on 127.0.0.1 behind a random key.
    """
    params.api_keys = [secrets.token_urlsafe(32)]
    params.n_threads_http = 1
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    with tempfile.TemporaryDirectory(prefix="retinue-", ignore_cleanup_errors=True) as folder:
        socket = os.path.join(folder, "s.sock")
        if os.name == "posix" and len(socket) <= _LONGEST_SOCKET_PATH:
            params.hostnames = [socket]
            try:
                return make(params)
            except RuntimeError:
                log.info("no Unix socket at %s; using a port on 127.0.0.1 behind a random key", socket)
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        return make(params)
