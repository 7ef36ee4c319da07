"""Long-term memory for LLM agents: the contract, the built-in memory, and the adapters."""

from typing import TYPE_CHECKING, Any

from .callbacks import (
    MemoryBackend,
    MemoryModule,
    as_memory,
    as_module,
)
from .chat import (
    ChatModel,
    Embedder,
    ModelDelta,
    ToolSpec,
    Usage,
)
from .memory import (
    InvocationContext,
    ManagedMemory,
    Memory,
    MemoryEntry,
    MemoryFilter,
    MemoryHit,
    MemoryKind,
    MemoryPage,
    MemoryRecord,
    Profile,
    Receipt,
    Scope,
)
from .messages import Message, Provenance, ToolCall
from .prompt import render, render_found
from .recall import (
    Recall,
    RecallFailure,
    RecallResult,
    provenance,
)
from .registry import open_memory

if TYPE_CHECKING:
    from .mem0 import Mem0Local, Mem0Memory, Mem0Server

__all__ = [
    "ChatModel",
    "Embedder",
    "InvocationContext",
    "ManagedMemory",
    "Mem0Local",
    "Mem0Memory",
    "Mem0Server",
    "Memory",
    "MemoryBackend",
    "MemoryEntry",
    "MemoryFilter",
    "MemoryHit",
    "MemoryKind",
    "MemoryModule",
    "MemoryPage",
    "MemoryRecord",
    "Message",
    "ModelDelta",
    "Profile",
    "Provenance",
    "Recall",
    "RecallFailure",
    "RecallResult",
    "Receipt",
    "Scope",
    "ToolCall",
    "ToolSpec",
    "Usage",
    "as_memory",
    "as_module",
    "open_memory",
    "provenance",
    "render",
    "render_found",
]


def __getattr__(name: str) -> Any:
    if not name.startswith("Mem0"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import mem0

    return getattr(mem0, name)
