"""Agents that remember: `Agent`, its models and tools, and the events it yields.

Importing this package is cheap: LiteLLM, the embedded model and pydantic are imported at their first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from retinue_memory import (
    ChatModel,
    InvocationContext,
    Message,
    ModelDelta,
    ToolCall,
    ToolSpec,
    Usage,
)

from .agent import Agent, RunResult
from .events import (
    Event,
    FinalAnswer,
    InputRequired,
    MemoryFailed,
    MemoryRetrieved,
    MemoryUpdated,
    StepLimitReached,
    TextDelta,
    ToolCalled,
    ToolReturned,
)
from .events import FinalAnswer as FinalAnswerEvent
from .function_tool import FunctionTool, tool
from .journal import Journal, NullJournal
from .models.open_model import check_model, open_model
from .state import State
from .tool_registry import as_tool, open_tool
from .tools import NeedInput, Tool, ToolContext, ToolResult

if TYPE_CHECKING:
    from .models.litellm import LiteLLMChat
    from .models.local import LocalChat

_LAZY = {"LiteLLMChat": ".models.litellm", "LocalChat": ".models.local"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Agent",
    "ChatModel",
    "Event",
    "FinalAnswer",
    "FinalAnswerEvent",
    "FunctionTool",
    "InputRequired",
    "InvocationContext",
    "Journal",
    "LiteLLMChat",
    "LocalChat",
    "MemoryFailed",
    "MemoryRetrieved",
    "MemoryUpdated",
    "Message",
    "ModelDelta",
    "NeedInput",
    "NullJournal",
    "RunResult",
    "State",
    "StepLimitReached",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolCalled",
    "ToolContext",
    "ToolResult",
    "ToolReturned",
    "ToolSpec",
    "Usage",
    "as_tool",
    "check_model",
    "open_model",
    "open_tool",
    "tool",
]
