"""Any model that LiteLLM knows. The sole importer of litellm, which takes seconds and 165 MB: in a thread, at first use."""

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

_LONGEST_WAIT_S = 20.0
"""An endpoint that asks for more (Retry-After) is not waited for."""
_BACKOFF = Backoff(first_s=0.6, jitter=1 / 3)
_NO_PROVIDER = 'LiteLLM knows no such provider; write it as "provider/model", such as "openai/gpt-5-mini"'
_NOISE = re.compile(r"^litellm\.\w+: (\w+: )?(\w+Exception - )?| ssl:<[^>]*>")
"""What litellm and its HTTP client put around the words that matter."""


class LiteLLMChat(ChatModel):
    """A model by its LiteLLM name: "openai/gpt-5-mini", "ollama_chat/qwen3.5:latest", "anthropic/...".

    Keys come from `api_key` or from the provider's environment variable. `timeout` bounds, in seconds, the wait for the
    connection and for each further piece of the answer. Before its first piece a request is tried again up to `retries`
    times where that may help (429, 5xx, no connection); afterwards never. Further settings go to litellm with every request.
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
            "messages": [_as_openai(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "drop_params": True,  # a provider that lacks stream_options or the like is no reason to fail
            "num_retries": 0,
            "max_retries": 0,
        }
        if tools:
            request["tools"] = [_tool(spec) for spec in tools]
            request["_skip_mcp_handler"] = True  # or litellm imports an MCP client that is not installed
        if schema is not None:
            described = {"name": "answer", "schema": dict(schema), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": described}
        for attempt in range(self._retries + 1):
            begun = False
            try:
                async for delta in self._once(litellm, request):
                    begun = True
                    yield delta
                return
            except ModelError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever litellm raises becomes one ModelError, or another try
                failure = self._explained(error, begun)
                wait = _seconds_to_wait(error, attempt)
                if begun or not failure.retryable or attempt == self._retries or wait > _LONGEST_WAIT_S:
                    raise failure from None  # the original may carry the key
                log.info("%s; trying again in %.1f s", failure, wait)
            await asyncio.sleep(wait)

    async def _once(self, litellm: Any, request: dict[str, Any]) -> AsyncIterator[ModelDelta]:
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
            await response.aclose()  # also on cancellation: the provider stops, and is not paid for what nobody reads
        if finish is None or _was_cut(litellm, response):
            raise ModelError(f"{self.name}: the connection ended in the middle of the answer", retryable=True)
        yield ModelDelta(tool_calls=tuple(calls[i].whole(self.name) for i in sorted(calls)), usage=usage, finish=finish)

    def _explained(self, error: Exception, begun: bool) -> ModelError:
        """What went wrong, in a line that says what to do, and never the key."""
        status: int | None = getattr(error, "status_code", None)
        kind = type(error).__name__
        said = _NOISE.sub("", " ".join(str(getattr(error, "message", error)).split()))[:300]
        retryable = False
        if kind in ("AuthenticationError", "PermissionDeniedError"):
            problem = f"the API key was refused ({status}): set api_key, or the provider's environment variable"
        elif "api_key" in said and re.search(r"missing|must be set", said, re.IGNORECASE):
            problem = "there is no API key: set api_key, or the provider's environment variable"
        elif "LLM Provider NOT provided" in said:
            problem = _NO_PROVIDER
        elif kind == "RateLimitError":
            problem, retryable = f"too many requests, or no quota left ({status}): {said}", True
        elif kind == "NotFoundError":
            problem = f"the provider does not know this model or address ({status}): {said}"
        elif kind == "ContextWindowExceededError":
            problem = f"the conversation is longer than the model can read: {said}"
        elif kind == "Timeout" or any("timeout" in type(cause).__name__.lower() for cause in _causes(error)):
            what = "nothing more" if begun else "no answer"
            problem, retryable = f"{what} within {self._settings['timeout']:g} seconds", True
        elif begun:
            problem, retryable = f"the connection ended in the middle of the answer ({kind}): {said}", True
        elif any(isinstance(cause, ConnectionError) or "Connect" in type(cause).__name__ for cause in _causes(error)):
            problem, retryable = f"no connection to the provider: {said}", True
        elif status is not None and status >= 500:
            problem, retryable = f"the provider failed ({status}): {said}", True
        else:
            problem = f"{kind}: {said}"
        keys = {value for value in (self._key, *_keys_in_environment()) if value and len(value) > 3}
        for key in keys:
            problem = problem.replace(key, "***")
        return ModelError(f"{self.name}: {problem}", retryable=retryable)


def check_provider(model: str) -> None:
    """Whether litellm knows who serves `model`. Imports litellm. Raises ConfigError where it does not."""
    litellm = _import()
    try:
        litellm.get_llm_provider(model)
    except litellm.exceptions.BadRequestError:
        raise ConfigError(
            f"{model!r}: {_NO_PROVIDER}",
            key="model",
            value=model,
        ) from None


class _PartialCall:
    """A tool call that arrives in pieces: the name once, the arguments as fragments of JSON."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def add(self, piece: Any) -> None:
        self.id = piece.id or self.id
        self.name = piece.function.name or self.name
        self.arguments.append(piece.function.arguments or "")

    def whole(self, model: str) -> ToolCall:
        text = "".join(self.arguments) or "{}"
        try:
            arguments = json.loads(text)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise ModelError(f"{model}: the arguments of its call of {self.name!r} are no JSON object", retryable=True)
        named = cast("dict[str, Any]", arguments)
        return ToolCall(self.id or f"call_{random.getrandbits(64):x}", self.name, named)


def _as_openai(message: Message) -> dict[str, Any]:
    shaped: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        shaped["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        shaped["tool_call_id"] = message.tool_call_id
    return shaped


def _tool(spec: ToolSpec) -> dict[str, Any]:
    function = {"name": spec.name, "description": spec.description, "parameters": dict(spec.parameters)}
    return {"type": "function", "function": function}


def _was_cut(litellm: Any, response: Any) -> bool:
    """Whether the stream ended without saying why. litellm then says "stop" itself, as if the answer were whole; with
    the providers of OpenAI's protocol, which always say, it is not.
    """
    provider = getattr(response, "custom_llm_provider", None)
    says = provider in ("openai", "azure") or provider in litellm.openai_compatible_providers
    heard = (getattr(response, f"{when}_finish_reason", None) for when in ("received", "intermittent"))
    return says and not any(heard)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, innermost last."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _seconds_to_wait(error: Exception, attempt: int) -> float:
    """The delay that the endpoint asks for in Retry-After, or else that of the backoff."""
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
    settings.suppress_debug_info = True  # it prints to stdout otherwise
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # every failure comes back as an exception as well
    return settings
