"""mem0, imported as late as can be, and never to phone home."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retinue_memory.errors import ConfigError, MemoryBackendError


def check_installed(backend: str) -> None:
    """Raises ConfigError where mem0 is not installed. Imports nothing."""
    if find_spec("mem0") is None:
        raise ConfigError("mem0 is not installed: pip install 'retinue[mem0]'", key="backend", value=backend)


def import_mem0(folder: Path | None = None) -> Any:
    """The library, which takes seconds. Its telemetry is off before it is imported, and what it would keep in the home folder is
    in `folder`, or in one that ends with the process; MEM0_DIR names another. Raises MemoryBackendError."""
    os.environ["MEM0_TELEMETRY"] = "False"
    if not os.environ.get("MEM0_DIR"):
        os.environ["MEM0_DIR"] = str(folder or _passing())
    try:
        mem0 = importlib.import_module("mem0")
    except ImportError as error:
        raise MemoryBackendError(f"mem0 cannot be imported ({error}): pip install 'retinue[mem0]'") from error
    logger = logging.getLogger("mem0")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)  # below that it logs what users said
    return mem0


def _passing() -> str:
    folder = tempfile.mkdtemp(prefix="retinue-mem0-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
