"""Long-term memory for LLM agents: the contract, the built-in memory, and the adapters."""

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

__all__ = [
    "ChatModel",
    "Embedder",
    "InvocationContext",
    "Memory",
    "MemoryEntry",
    "MemoryKind",
    "Message",
    "ModelDelta",
    "Provenance",
    "Scope",
    "ToolCall",
    "ToolSpec",
    "Usage",
]
