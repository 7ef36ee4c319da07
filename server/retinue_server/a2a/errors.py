"""Translate the project's errors into A2A errors, which every binding sends with ErrorInfo and without internals."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, ParamSpec

from a2a.server.jsonrpc_models import JSONRPCError
from a2a.server.request_handlers.response_helpers import EXCEPTION_MAP
from a2a.utils.errors import (
    A2A_ERROR_MAPPING,
    A2A_ERROR_REASONS,
    JSON_RPC_ERROR_CODE_MAP,
    A2AError,
    ErrorMapping,
    InternalError,
    InvalidParamsError,
    JSONParseError,
)

from retinue_memory.errors import IdentityError, LimitError

logger = logging.getLogger(__name__)

P = ParamSpec("P")


class TooManyRequestsError(A2AError):
    """A limit was reached: HTTP 429 with Retry-After, gRPC RESOURCE_EXHAUSTED, JSON-RPC -32000.

    `retry_after` is in seconds; None: unknown.
    """

    message = "Too many requests"

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            message, None if retry_after is None else {"retryAfterSeconds": f"{retry_after:g}"}
        )
        self.retry_after = retry_after


# The SDK's bindings look an error up in these tables.
JSON_RPC_ERROR_CODE_MAP[TooManyRequestsError] = -32000
A2A_ERROR_MAPPING[TooManyRequestsError] = ErrorMapping(429, "RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS")
A2A_ERROR_REASONS[TooManyRequestsError] = "TOO_MANY_REQUESTS"
EXCEPTION_MAP[TooManyRequestsError] = JSONRPCError
EXCEPTION_MAP[JSONParseError] = JSONRPCError  # the SDK has a code for it, but no JSON-RPC form
A2A_ERROR_MAPPING[JSONParseError] = ErrorMapping(400, "INVALID_ARGUMENT", "PARSE_ERROR")
A2A_ERROR_REASONS[JSONParseError] = "PARSE_ERROR"


def a2a_error(error: Exception) -> A2AError:
    """The A2A error for a caller. An unexpected one is logged, and says nothing of its cause."""
    match error:
        case LimitError():
            return TooManyRequestsError(str(error), error.retry_after)
        case IdentityError():
            return InvalidParamsError(str(error))
        case _:
            logger.error("request failed; answering with an internal error", exc_info=error)
            return InternalError("the server failed unexpectedly; its log says why")


def translated(operation: Callable[P, Any]) -> Callable[P, Any]:
    """Make an operation of a handler (a coroutine function or an async generator function) raise A2A errors only."""
    if inspect.isasyncgenfunction(operation):

        @functools.wraps(operation)
        async def streaming(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Any]:
            async with aclosing(operation(*args, **kwargs)) as events:
                try:
                    async for event in events:
                        yield event
                except A2AError:
                    raise
                except Exception as error:
                    raise a2a_error(error) from error

        return streaming

    @functools.wraps(operation)
    async def answering(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return await operation(*args, **kwargs)
        except A2AError:
            raise
        except Exception as error:
            raise a2a_error(error) from error

    return answering
