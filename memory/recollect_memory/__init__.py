"""Long-term memory for LLM agents: the contract, the built-in memory, and the adapters."""

from .backend import MemoryBackend, MemoryModule, as_memory
from .contract import (
    ChatModel,
    Embedder,
    InvocationContext,
    ManagedMemory,
    Memory,
    MemoryEntry,
    MemoryFilter,
    MemoryHit,
    MemoryKind,
    MemoryPage,
    MemoryRecord,
    Message,
    ModelDelta,
    Profile,
    Provenance,
    Receipt,
    Scope,
    ToolCall,
    ToolSpec,
    Usage,
)
from .recall import Recall, RecallFailure, RecallResult
from .registry import open_memory
from .rendering import render

__all__ = [
    "ChatModel",
    "Embedder",
    "InvocationContext",
    "ManagedMemory",
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
    "open_memory",
    "render",
]
