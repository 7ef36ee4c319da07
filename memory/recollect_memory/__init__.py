"""Long-term memory for LLM agents: the contract, the built-in memory, and the adapters."""

from .backend import MemoryBackend, MemoryModule, as_memory
from .contract import (
    ChatModel,
    Embedder,
    InvocationContext,
    Memory,
    MemoryEntry,
    MemoryKind,
    Message,
    ModelDelta,
    Provenance,
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
    "Memory",
    "MemoryBackend",
    "MemoryEntry",
    "MemoryKind",
    "MemoryModule",
    "Message",
    "ModelDelta",
    "Provenance",
    "Recall",
    "RecallFailure",
    "RecallResult",
    "Scope",
    "ToolCall",
    "ToolSpec",
    "Usage",
    "as_memory",
    "open_memory",
    "render",
]
