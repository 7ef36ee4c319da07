"""The A2A server: `create_app` assembles it, `A2AExecutor` puts an agent behind any a2a-sdk handler, `TaskClient` calls it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault(
    "OTEL_INSTRUMENTATION_A2A_SDK_ENABLED", "false"
)  # read when the SDK is imported; a quarter of its cost

if TYPE_CHECKING:
    from .a2a.executor import A2AExecutor
    from .assembly import create_app
    from .client import FinishedTask, TaskClient

__all__ = ["A2AExecutor", "FinishedTask", "TaskClient", "create_app"]

_HOMES = {"A2AExecutor": "a2a.executor", "FinishedTask": "client", "TaskClient": "client", "create_app": "assembly"}


def __getattr__(name: str) -> Any:
    """Each name is imported when it is asked for: the command line starts without the SDK, a client without the server."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
