"""From a function or a name in a config to a `Tool`."""

from __future__ import annotations

from .function_tool import Function, FunctionTool
from .tools import Tool


def as_tool(tool: Tool | Function) -> Tool:
    """Return a tool unchanged and a function as a `FunctionTool`. Raises ConfigError if it is neither."""
    return tool if isinstance(tool, Tool) else FunctionTool.of(tool)


def open_tool(spec: str) -> Tool:
    """Import the tool or function that a config names as "module:attribute".

    Raises ImportFormatError, ImportModuleError or ImportAttributeError if it cannot be imported, and ConfigError if it is
    not a tool.
    """
    from retinue_memory.importer import import_from_string

    return as_tool(import_from_string(spec))
