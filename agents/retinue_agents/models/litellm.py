"""Models served through LiteLLM.

Only this module imports litellm, which takes seconds and 165 MB: in a thread, at the first request.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, cast

from retinue_memory import (
    ChatModel,
    Message,
    ModelDelta,
    ToolCall,
    ToolSpec,
    Usage,
)
from retinue_memory.errors import ConfigError, ModelError
from retinue_memory.retry import Backoff, retry_after

log = logging.getLogger(__name__)

_MAX_RETRY_DELAY_S = 20.0  # if the endpoint asks for more (Retry-After), the request fails at once
_BACKOFF = Backoff(first_s=0.6, jitter=1 / 3)
_UNKNOWN_PROVIDER = 'LiteLLM knows no such provider; write it as "provider/model", such as "openai/gpt-5-mini"'
# what litellm and its HTTP client add around the provider's message
_NOISE = re.compile(r"^litellm\.\w+: (\w+: )?(\w+Exception - )?| ssl:<[^>]*>")


class LiteLLMChat(ChatModel):
    """A model by its LiteLLM name: "openai/gpt-5-mini", "ollama_chat/qwen3.5:latest", "anthropic/...".

    The key is `api_key`, or the provider's environment variable. `timeout` is in seconds, for the connection and for each
    piece of the answer. A request that fails before the first piece is retried up to `retries` times if a retry can help
    (429, 5xx, no connection); one that fails later is not. Other settings are passed to litellm with every request.
    """

    def __init__(
        self,
        model: str,
        *,
        api_key: str | None = None,
        api_base: str | None = None,
        timeout: float = 60.0,
        retries: int = 2,
        **settings: Any,
    ) -> None:
        self.name = model
        self._key = api_key
        self._retries = retries
        self._settings: dict[str, Any] = {"model": model, "timeout": timeout, **settings}
        if api_key is not None:
            self._settings["api_key"] = api_key
        base = api_base or (os.environ.get("OLLAMA_URL") if model.startswith("ollama") else None)
        if base is not None:
            self._settings["api_base"] = base

    def __repr__(self) -> str:
        return f"LiteLLMChat({self.name!r})"

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        schema: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> AsyncIterator[ModelDelta]:
        litellm = await _imported()
        request = {
            **self._settings,
            **settings,
            "messages": [_message_json(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "drop_params": True,  # or a provider without stream_options refuses the request
            "num_retries": 0,
            "max_retries": 0,
        }
        if tools:
            request["tools"] = [_tool_json(spec) for spec in tools]
            request["_skip_mcp_handler"] = True  # or litellm imports an MCP client, which is not installed
        if schema is not None:
            answer = {"name": "answer", "schema": dict(schema), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": answer}
        for attempt in range(self._retries + 1):
            started = False
            try:
                async for delta in self._attempt(litellm, request):
                    started = True
                    yield delta
                return
            except ModelError:
                raise
            except Exception as error:  # noqa: BLE001 - anything litellm raises becomes a ModelError or a retry
                failure = self._model_error(error, started)
                delay_s = _retry_delay_s(error, attempt)
                if started or not failure.retryable or attempt == self._retries or delay_s > _MAX_RETRY_DELAY_S:
                    raise failure from None  # the original error may contain the key
                log.info("%s; retrying in %.1f s", failure, delay_s)
            await asyncio.sleep(delay_s)

    async def _attempt(self, litellm: Any, request: dict[str, Any]) -> AsyncIterator[ModelDelta]:
        response = await litellm.acompletion(**request)
        calls: dict[int, _PartialCall] = {}
        finish: str | None = None
        usage: Usage | None = None
        try:
            async for chunk in response:
                if counted := getattr(chunk, "usage", None):
                    usage = Usage(counted.prompt_tokens or 0, counted.completion_tokens or 0)
                for choice in chunk.choices:
                    finish = choice.finish_reason or finish
                    if text := choice.delta.content:
                        yield ModelDelta(text)
                    for piece in choice.delta.tool_calls or ():
                        calls.setdefault(piece.index or 0, _PartialCall()).add(piece)
        finally:
            await response.aclose()  # on cancellation too: the provider stops generating, and charging
        if finish is None or _is_truncated(litellm, response):
            raise ModelError(f"{self.name}: the connection ended in the middle of the answer", retryable=True)
        yield ModelDelta(tool_calls=tuple(calls[i].build(self.name) for i in sorted(calls)), usage=usage, finish=finish)

    def _model_error(self, error: Exception, started: bool) -> ModelError:
        """Describe the error in one line that says what to do and does not contain a key."""
        status: int | None = getattr(error, "status_code", None)
        kind = type(error).__name__
        message = _NOISE.sub("", " ".join(str(getattr(error, "message", error)).split()))[:300]
        retryable = False
        if kind in ("AuthenticationError", "PermissionDeniedError"):
            problem = f"the API key was refused ({status}): set api_key, or the provider's environment variable"
        elif "api_key" in message and re.search(r"missing|must be set", message, re.IGNORECASE):
            problem = "there is no API key: set api_key, or the provider's environment variable"
        elif "LLM Provider NOT provided" in message:
            problem = _UNKNOWN_PROVIDER
        elif kind == "RateLimitError":
            problem, retryable = f"too many requests, or no quota left ({status}): {message}", True
        elif kind == "NotFoundError":
            problem = f"the provider does not know this model or address ({status}): {message}"
        elif kind == "ContextWindowExceededError":
            problem = f"the conversation does not fit the model's context window: {message}"
        elif kind == "Timeout" or any("timeout" in type(cause).__name__.lower() for cause in _causes(error)):
            what = "nothing more" if started else "no answer"
            problem, retryable = f"{what} within {self._settings['timeout']:g} seconds", True
        elif started:
            problem, retryable = f"the connection ended in the middle of the answer ({kind}): {message}", True
        elif any(isinstance(cause, ConnectionError) or "Connect" in type(cause).__name__ for cause in _causes(error)):
            problem, retryable = f"no connection to the provider: {message}", True
        elif status is not None and status >= 500:
            problem, retryable = f"the provider failed ({status}): {message}", True
        else:
            problem = f"{kind}: {message}"
        keys = {value for value in (self._key, *_keys_in_environment()) if value and len(value) > 3}
        for key in keys:
            problem = problem.replace(key, "***")
        return ModelError(f"{self.name}: {problem}", retryable=retryable)


def check_provider(model: str) -> None:
    """Raise ConfigError unless litellm knows a provider for `model`. Imports litellm."""
    litellm = _import()
    try:
        litellm.get_llm_provider(model)
    except litellm.exceptions.BadRequestError:
        raise ConfigError(
            f"{model!r}: {_UNKNOWN_PROVIDER}",
            key="model",
            value=model,
        ) from None


class _PartialCall:
    """A tool call that is received in pieces: the name once, the arguments as fragments of JSON."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def add(self, piece: Any) -> None:
        self.id = piece.id or self.id
        self.name = piece.function.name or self.name
        self.arguments.append(piece.function.arguments or "")

    def build(self, model: str) -> ToolCall:
        text = "".join(self.arguments) or "{}"
        try:
            arguments = json.loads(text)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise ModelError(
                f"{model}: the arguments of its call of {self.name!r} are not a JSON object", retryable=True
            )
        named = cast("dict[str, Any]", arguments)
        return ToolCall(self.id or f"call_{random.getrandbits(64):x}", self.name, named)


def _message_json(message: Message) -> dict[str, Any]:
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        value["tool_call_id"] = message.tool_call_id
    return value


def _tool_json(spec: ToolSpec) -> dict[str, Any]:
    function = {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)}
    return {"type": "function", "function": function}


def _is_truncated(litellm: Any, response: Any) -> bool:
    """Whether the stream ended without a finish reason, although its provider always sends one.

    litellm reports "stop" in that case too, so its own record of what it received is checked.
    """
    provider = getattr(response, "custom_llm_provider", None)
    sends_reason = provider in ("openai", "azure") or provider in litellm.openai_compatible_providers
    reasons = (getattr(response, f"{when}_finish_reason", None) for when in ("received", "intermittent"))
    return sends_reason and not any(reasons)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, innermost last."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _retry_delay_s(error: Exception, attempt: int) -> float:
    """The endpoint's Retry-After, or an exponential backoff with jitter."""
    headers: Any = getattr(error, "litellm_response_headers", None) or {}
    asked = retry_after(headers.get("retry-after"))
    return asked if asked is not None else _BACKOFF.delay_s(attempt)


def _keys_in_environment() -> list[str]:
    return [value for name, value in os.environ.items() if name.endswith(("_API_KEY", "_TOKEN", "_SECRET"))]


async def _imported() -> Any:
    return await asyncio.to_thread(_import) if not _import.cache_info().currsize else _import()


@functools.cache
def _import() -> Any:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it fetches its price list over the network
    import litellm

    settings: Any = litellm
    settings.suppress_debug_info = True  # or it prints to stdout
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each error is raised as well
    return settings
