"""mem0 in its three forms: the cloud, a server of one's own, the library in this process.

mem0 itself (`pip install 'retinue[mem0]'`) is imported when the cloud or the library is first used, and never phones home.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cloud import Mem0Memory
    from .local import Mem0Local
    from .server import Mem0Server

__all__ = ["Mem0Local", "Mem0Memory", "Mem0Server"]

_HOMES = {"Mem0Memory": "cloud", "Mem0Server": "server", "Mem0Local": "local"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
