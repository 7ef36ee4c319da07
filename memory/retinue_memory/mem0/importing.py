"""The import of mem0: late, and without its telemetry."""

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
    """Raises ConfigError if mem0 is not installed. Imports nothing."""
    if find_spec("mem0") is None:
        raise ConfigError("mem0 is not installed: pip install 'retinue[mem0]'", key="backend", value=backend)


def import_mem0(folder: Path | None = None) -> Any:
    """Import mem0, which takes seconds. Raises MemoryBackendError if that fails.

    The files that mem0 would store in the home folder go to `folder`, or to a temporary one; MEM0_DIR overrides both.
    """
    os.environ["MEM0_TELEMETRY"] = "False"
    if not os.environ.get("MEM0_DIR"):
        os.environ["MEM0_DIR"] = str(folder or _temporary_folder())
    try:
        mem0 = importlib.import_module("mem0")
    except ImportError as error:
        raise MemoryBackendError(f"mem0 cannot be imported ({error}): pip install 'retinue[mem0]'") from error
    logger = logging.getLogger("mem0")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)  # at INFO it logs what users said
    return mem0


def _temporary_folder() -> str:
    folder = tempfile.mkdtemp(prefix="retinue-mem0-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
